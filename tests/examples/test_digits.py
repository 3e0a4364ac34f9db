"""The example of the digits, as its files say how to start it, for a few steps."""

from __future__ import annotations

import pathlib

import pytest
import torch

from hvd_async.launcher.batch_script import Resources, ScriptJob, render
from tests.examples.command import ROOT, hvd_async, launch_script
from tests.mpi.runs import summary_of


@pytest.mark.mpi
def test_the_script_trains_and_its_twin_is_printed_beside_it(tmp_path: pathlib.Path) -> None:
    printed = {}
    for kind, name in (("async", "run"), ("horovod", "run-horovod")):
        done = launch_script(kind, "examples.digits.train", "--output", tmp_path / name, "--epochs", "5")
        printed[name] = done.stdout
        scores = summary_of(tmp_path / name)["last"]["scores"]
        assert scores["accuracy"] > 40 and f"accuracy {scores['accuracy']:.1f} %" in done.stdout
        saved = torch.load(tmp_path / name / "model.pt", weights_only=True)
        assert {"1.running_mean", "1.num_batches_tracked", "9.weight"} <= saved.keys()
    assert f"--set strategy.kind=horovod --set output={tmp_path}/run-horovod -- python -m examples." in printed["run"]
    rows = [line.split()[:2] for line in printed["run-horovod"].splitlines() if line.startswith(str(tmp_path))]
    assert rows == [[f"{tmp_path}/run-horovod", "horovod"], [f"{tmp_path}/run", "async"]]
    assert "its twin" not in printed["run-horovod"]


@pytest.mark.mpi
def test_the_task_trains(tmp_path: pathlib.Path) -> None:
    changes = ("--set", f"output={tmp_path}/run", "--set", "training.epochs=2")
    hvd_async("launch", "examples/digits/run.yaml", "--workers", "2", *changes)
    assert summary_of(tmp_path / "run")["last"]["scores"]["accuracy"] > 40


def test_the_suite_compares_accuracy_and_perplexity(tmp_path: pathlib.Path) -> None:
    suite = tmp_path / "suite.yaml"
    text = (ROOT / "examples/digits/suite.yaml").read_text()
    suite.write_text(
        text.replace("base: run.yaml", f"base: {ROOT}/examples/digits/run.yaml")
        .replace("7500", "1500")
        .replace("every: 1500", "every: 750")
    )
    hvd_async("compare", suite, "--output", tmp_path / "out")
    report = (tmp_path / "out/report/report.md").read_text()
    assert "accuracy" in report and "perplexity" in report and "images/s" in report
    assert "bleu" not in report.lower() and "token" not in report.lower()


def test_the_batch_script_is_the_one_that_launch_writes() -> None:
    path = "examples/digits/job.sbatch"
    program = ("python", "-m", "examples.digits.train")
    job = ScriptJob("train", "", ("--set", "strategy.kind=async"), name="digits", program=program, path=path)
    text = render(job, Resources(workers_per_node=2, cpus_per_worker=2, time="0:10:00"))
    assert (ROOT / path).read_text() == text
