"""A short part of `python -m tests.chaos`: real runs whose processes are struck at random lose nothing that they need not."""

from __future__ import annotations

import pathlib

import pytest

from tests.chaos.case import Case, Moment
from tests.chaos.trial import run_case
from tests.ranks import mpi_family

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(mpi_family() != "openmpi", reason="only Open MPI's mpirun keeps the other ranks"),
]


# Workers that are killed, in lock-step and with two shards; and the first of all.
@pytest.mark.parametrize("number", [57, 59, *(pytest.param(number, marks=pytest.mark.slow) for number in range(12))])
def test_a_run_that_is_struck_loses_nothing_that_it_need_not(tmp_path: pathlib.Path, number: int) -> None:
    case = Case.draw(2, number)
    if case.strategy == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not installed; see launch/setup.sh")
    assert run_case(case, tmp_path).fault == "", str(case)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "fault", "moment", "outcome"),
    [
        ("worker", "SIGKILL", Moment("point", point="begin"), "goes on"),
        ("worker", "exit", Moment("point", point="push", call=3), "goes on"),
        ("worker", "exit", Moment("point", point="leave"), "goes on"),
        ("worker", "SIGKILL", Moment("point", point="wait_for_returned", access=1), "goes on"),
        ("worker", "SIGKILL", Moment("point", point="before allgather", call=5), "ends"),
        ("store", "exit", Moment("point", point="before allgather", call=21), "ends"),
        ("store", "SIGSTOP", Moment("start", 2.0), "ends"),
        ("shard", "SIGSTOP", Moment("training", 1.0), "salvaged"),
        ("all ranks", "SIGKILL", Moment("training", 0.5), "salvaged"),
    ],
    ids=str,
)
def test_what_was_found_is_mended(tmp_path: pathlib.Path, target: str, fault: str, moment: Moment, outcome: str) -> None:
    strategy = "async 2 shards" if target == "shard" else "async N=workers"
    case = Case(0, strategy, target, fault, moment, 0.4, 1.0, 0, during=False, respawns=False, joins=False)
    result = run_case(case, tmp_path)
    assert (result.fault, result.outcome) == ("", outcome)
    assert (result.status == 0) == (outcome == "goes on")
