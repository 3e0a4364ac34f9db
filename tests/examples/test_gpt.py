"""The example of the language model, on the documentation, for a few steps."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest

from tests.mpi.runs import summary_of
from tests.ranks import run_limited

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.mpi
def test_the_script_trains(tmp_path: pathlib.Path) -> None:
    text = tmp_path / "text"
    text.write_bytes((ROOT / "README.md").read_bytes()[:9000])
    program = (
        "--",
        sys.executable,
        "-m",
        "examples.gpt.train",
        text,
        "--output",
        tmp_path / "run",
        "--batch-size",
        "8",
        "--bfloat16",
    )
    command = (
        sys.executable,
        "-m",
        "hvd_async",
        "launch",
        "--workers",
        "2",
        "--set",
        "strategy.kind=async",
        *map(str, program),
    )
    done = run_limited(("env", "-C", str(ROOT), *command), {**os.environ, "PYTHONPATH": str(ROOT)}, 120)
    assert done.returncode == 0, done.stderr
    scores = summary_of(tmp_path / "run")["last"]["scores"]
    assert scores["perplexity"] < 200 and f"perplexity {scores['perplexity']:.2f}" in done.stdout
