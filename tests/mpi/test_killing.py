"""A short sample of `python -m tests.mpi.killing`: real runs, killed at random moments, lose nothing."""

from __future__ import annotations

import pathlib

import pytest

from tests.mpi.killing import Case, run_case

pytestmark = pytest.mark.mpi


# Drawn at random from the seed and the number; those that take longer are marked slow.
@pytest.mark.parametrize("number", [88, 121, *(pytest.param(number, marks=pytest.mark.slow) for number in range(20, 30))])
def test_a_run_that_is_killed_loses_nothing(tmp_path: pathlib.Path, number: int) -> None:
    case = Case.draw(1, number)
    if case.strategy == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not installed; see launch/setup.sh")
    assert run_case(case, tmp_path).fault == "", str(case)
