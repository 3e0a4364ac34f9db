"""The example of the digits, as its files say how to start it, for a few steps."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
import torch

from tests.mpi.runs import summary_of
from tests.ranks import run_limited

ROOT = pathlib.Path(__file__).parents[2]


def hvd_async(*arguments: str | pathlib.Path, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = (sys.executable, "-m", "hvd_async", *map(str, arguments))
    return run_limited(("env", "-C", str(ROOT), *command), environ, timeout)  # type: ignore[return-value]


@pytest.mark.mpi
@pytest.mark.parametrize("kind", ["async", "horovod"])
def test_the_script_trains(tmp_path: pathlib.Path, kind: str) -> None:
    folder = tmp_path / "run"
    program = ("--", sys.executable, "-m", "examples.digits.train", "--output", folder)
    done = hvd_async("launch", "--workers", "2", "--set", f"strategy.kind={kind}", *program)
    assert done.returncode == 0, done.stderr
    scores = summary_of(folder)["last"]["scores"]
    assert scores["accuracy"] > 40 and f"accuracy {scores['accuracy']:.1f} %" in done.stdout
    saved = torch.load(folder / "model.pt", weights_only=True)
    assert {"1.running_mean", "1.num_batches_tracked", "9.weight"} <= saved.keys()


@pytest.mark.mpi
def test_the_task_trains(tmp_path: pathlib.Path) -> None:
    done = hvd_async(
        "launch",
        "examples/digits/run.yaml",
        "--workers",
        "2",
        "--set",
        f"output={tmp_path}/run",
        "--set",
        "training.epochs=2",
    )
    assert done.returncode == 0, done.stderr
    assert summary_of(tmp_path / "run")["last"]["scores"]["accuracy"] > 40


def test_the_suite_compares_accuracy_and_perplexity(tmp_path: pathlib.Path) -> None:
    suite = tmp_path / "suite.yaml"
    text = (ROOT / "examples/digits/suite.yaml").read_text()
    suite.write_text(
        text.replace("base: run.yaml", f"base: {ROOT}/examples/digits/run.yaml")
        .replace("7500", "1500")
        .replace("every: 1500", "every: 750")
    )
    done = hvd_async("compare", suite, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "out/report/report.md").read_text()
    assert "accuracy" in report and "perplexity" in report and "images/s" in report
    assert "bleu" not in report.lower() and "token" not in report.lower()
