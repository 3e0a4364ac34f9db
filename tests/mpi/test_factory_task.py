"""A task of the user's own on real ranks: every verb takes it without a change."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import yaml

from tests.mpi.runs import events_of, losses_of, summary_of
from tests.ranks import run_limited

pytestmark = pytest.mark.mpi
ROOT = pathlib.Path(__file__).parents[2]


def write(folder: pathlib.Path, **sections: Any) -> pathlib.Path:
    tree = {
        "output": str(folder / "run"),
        "task": {"factory": "tests.tasks.blobs:make_task", "options": {"size": 150}},
        "training": {"epochs": 2, "device": "cpu", "tensorboard": False},
        "optimizer": {
            "learning_rate": 0.02,
            "epsilon": 1e-3,
            "groups": [{"match": ["*.bias"], "weight_decay": 0.0}],
            "kind": "adamw",
        },
        "strategy": {"kind": "async"},
        "validation": {"every": 3},
        **sections,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def hvd_async(*arguments: str | pathlib.Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return run_limited((sys.executable, "-m", "hvd_async", *map(str, arguments)), environ, timeout)  # type: ignore[return-value]


def test_a_users_task_trains_and_is_replayed_only_if_it_is_trusted(tmp_path: pathlib.Path) -> None:
    done = hvd_async("launch", write(tmp_path), "--workers", "3")
    assert done.returncode == 0, done.stderr
    assert "150 training and 90 validation examples, 10 batches an epoch" in done.stdout
    summary = summary_of(tmp_path / "run")
    assert summary["last"]["scores"].keys() == {"loss", "accuracy", "perplexity"}
    assert summary["last"]["scores"]["accuracy"] > 50
    assert [metric["name"] for metric in summary["metrics"]] == ["loss", "accuracy", "perplexity"]
    assert sorted(arrival["batch"] for arrival in events_of(tmp_path / "run", "arrival")) == list(range(20))
    assert (tmp_path / "run/models/best/model.safetensors").exists()

    refused = hvd_async("replay", tmp_path / "run")
    assert refused.returncode == 2 and "expected --trust-task if you trust it" in refused.stderr
    replayed = hvd_async("replay", tmp_path / "run", "--trust-task")
    assert replayed.returncode == 0 and "all to the last bit" in replayed.stdout, replayed.stderr
    report = hvd_async("report", tmp_path / "run", "--output", tmp_path / "report")
    assert report.returncode == 0, report.stderr


def test_lock_step_equals_horovod_with_groups_and_a_users_task(tmp_path: pathlib.Path) -> None:
    for name, strategy in (("lockstep", {"kind": "async", "lockstep": True}), ("horovod", {"kind": "horovod"})):
        (tmp_path / name).mkdir()
        done = hvd_async("launch", write(tmp_path / name, strategy=strategy), "--workers", "2")
        assert done.returncode == 0, done.stderr
    assert losses_of(tmp_path / "lockstep/run") == pytest.approx(losses_of(tmp_path / "horovod/run"), rel=2e-5)


def test_a_failing_factory_is_one_line_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, task={"factory": "tests.tasks.blobs:make_trouble"})
    done = hvd_async("launch", path, "--workers", "2")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "make_trouble failed" in line]
    assert len(lines) == 1 and "OSError: no such disk" in lines[0] and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_users_task_is_simulated(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, simulation={"workers": 4, "parameters": 50, "weight": 16}, emulation={"seconds": 0.1})
    done = hvd_async("simulate", path)
    assert done.returncode == 0, done.stderr
    assert summary_of(tmp_path / "run")["num_workers"] == 4
    done = hvd_async("simulate", path, "--timing-only")
    assert done.returncode == 0, done.stderr
