"""A step that a process began which was killed in it is completed by another, to the last bit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from hvd_async.vectors import arithmetic
from hvd_async.vectors.redo import REDO_BYTES, Redo, StepProgress
from tests.vectors.killed_steps import OPTIMIZERS


@pytest.mark.skipif(not arithmetic.is_compiled(), reason="no C extension")
@pytest.mark.parametrize("num_ranges", [1, 3])
def test_a_step_that_was_killed_is_completed(num_ranges: int) -> None:
    command = [sys.executable, "-m", "tests.vectors.killed_steps", str(num_ranges)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and done.stdout.split() == list(OPTIMIZERS), done.stderr


def test_the_record_says_how_far_a_step_has_come() -> None:
    redo = Redo(torch.zeros(REDO_BYTES, dtype=torch.uint8))
    assert redo.progress == StepProgress(0, 0)
    first = redo.begin(StepProgress(3, 0), [(0, 10), (10, 20)])
    assert redo.under_way() == [(first[0], 10), (first[1], 20)]
    second = redo.begin(StepProgress(3, 1), [(0, 5)])
    assert redo.under_way() == [(second[0], 5)] and not set(first) & set(second)
    redo.end(3, 2)
    assert redo.progress == StepProgress(3, 2)
