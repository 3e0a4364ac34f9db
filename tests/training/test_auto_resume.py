"""`hvd-async train --auto-resume`: the same command serves the first start of a job and all later ones."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest

from hvd_async.__main__ import main
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.mpi.runs import write_config
from tests.ranks import run_ranks
from tests.runs.saved import load_latest_checkpoint

ENVIRON = {"SLURM_JOB_ID": "123", "SLURM_JOB_NAME": "train", "SLURM_JOB_PARTITION": "low", "SLURM_RESTART_COUNT": "2"}


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    write_corpus(tmp_path / "text", train=120, validation=8, test=8)
    training = {"weight": None, "updates": 4, "threads": 1}
    return write_config(tmp_path, training=training, validation={"every": None}, metrics=[])


def train(config: pathlib.Path, *overrides: str) -> int:
    sets = [word for override in overrides for word in ("--set", override)]
    return main(["train", str(config), "--auto-resume", *sets])


def summary_of(config: pathlib.Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((config.parent / "run/summary.json").read_text())
    return summary


def test_auto_resume_starts_resumes_and_ends_at_once_when_training_is_complete(
    config: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("finished: version 4, ")
    assert summary_of(config)["processes"] == 1 and summary_of(config)["job"] is None
    assert train(config, "training.updates=6") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("finished: version 6, ") and line.endswith(f", resumed once; see {config.parent / 'run'}")
    model = (config.parent / "run/models/last/model.safetensors").read_bytes()
    assert train(config, "training.updates=6") == 0
    *_, printed, line = capsys.readouterr().out.splitlines()
    assert printed == "finished before, and no more training is configured: nothing to do"
    assert "version 6, " in line and ", resumed once;" in line
    assert summary_of(config)["processes"] == 2 and summary_of(config)["updates"] == 6
    events = [json.loads(line) for line in (config.parent / "run/events.jsonl").read_text().splitlines()]
    assert [event["version"] for event in events if event["event"] == "start"] == [0, 4]
    assert (config.parent / "run/models/last/model.safetensors").read_bytes() == model


def test_data_are_identified_by_their_content_and_not_by_their_path(
    config: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config) == 0
    text = config.parent / "text"
    moved = text.rename(config.parent / "moved")
    assert train(config, f"task.data.folder={moved}", "training.updates=6") == 0
    assert summary_of(config)["updates"] == 6
    write_corpus(text, seed=2, train=120, validation=8, test=8)
    capsys.readouterr()
    assert train(config, "training.updates=8") == 2
    assert capsys.readouterr().err == (
        f"hvd-async: --auto-resume: task: got data that differ from the run's training data ({text}); restore them, or start"
        " another run\n"
    )


def test_a_configuration_that_is_refused_has_no_text_prepared_for_it(
    config: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config) == 0
    prepared = list((config.parent / "text/prepared").iterdir())
    arguments = ["train", str(config), "--resume", "--set", "task.vocabulary.size=100", "--set", "seed=7"]
    assert main(arguments) == 2
    keys = [line.split(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert keys == ["seed", "task.vocabulary.size"] and list((config.parent / "text/prepared").iterdir()) == prepared


def test_a_learning_rate_that_has_fallen_to_0_is_reported(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = "optimizer.schedule={kind: linear, unit: weight, total: 200}"
    assert train(config, schedule, "task.batching.tokens=100", "training.updates=9") == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if "learning rate is 0" in line]
    updates = [json.loads(line) for line in (config.parent / "run/events.jsonl").read_text().splitlines()]
    idle = [event["version"] for event in updates if event.get("learning_rate") == 0.0]
    assert printed == [f"version {idle[1]}: the learning rate is 0 from here on; see optimizer.schedule.total"]


def test_a_run_interrupted_before_its_first_checkpoint_starts_again_and_reports_it(
    config: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config) == 0
    whole = (config.parent / "run/models/last/model.safetensors").read_bytes()
    shutil.rmtree(config.parent / "run/checkpoints")
    (config.parent / "run/summary.json").unlink()
    capsys.readouterr()
    assert train(config) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        f"{config.parent / 'run'}: a run was interrupted before its first checkpoint, and begins again;"
    )
    assert "lost: 4 updates, " in lines[0]
    assert summary_of(config)["processes"] == 1
    assert (config.parent / "run/models/last/model.safetensors").read_bytes() == whole


def test_a_different_run_and_a_damaged_checkpoint_fail_as_with_resume(
    config: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config) == 0
    assert train(config, "seed=2") == 2
    assert capsys.readouterr().err.startswith("hvd-async: --auto-resume: seed: got 2, expected 1")
    (config.parent / "run/checkpoints/v00000004/data.json").write_text("{")
    assert train(config) == 5
    assert "damaged" in capsys.readouterr().err
    shutil.rmtree(config.parent / "run/checkpoints")
    assert train(config) == 5  # a summary shows that the run was not interrupted
    assert "start with --overwrite in place of --auto-resume" in capsys.readouterr().err
    assert summary_of(config)["updates"] == 4


def test_remains_of_a_run_are_an_error_and_are_not_removed(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = config.parent / "run"
    assert train(config) == 0
    (run / "config.yaml").unlink()
    assert train(config) == 2
    assert f"--auto-resume: {run}: got checkpoints, models, events.jsonl, summary.json without" in capsys.readouterr().err
    assert load_latest_checkpoint(run / "checkpoints") is not None


@pytest.mark.parametrize("other", ["--resume", "--overwrite"])
def test_only_one_way_to_begin_may_be_given(config: pathlib.Path, other: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", str(config), "--auto-resume", other])
    assert f"{other}: not allowed with argument --auto-resume" in capsys.readouterr().err


def test_refused_arrivals_come_before_the_last_line(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [f"--set={text}" for text in ("strategy.kind=async", "simulation.workers=3", f"output={config.parent / 'far'}")]
    assert main(["simulate", str(config), *sets]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("refused arrivals: after_the_end ") and lines[-1].startswith("finished: version 4, ")


@pytest.mark.mpi
def test_all_ranks_begin_in_the_same_way_and_the_job_is_recorded(config: pathlib.Path) -> None:
    command = ["hvd_async", "train", str(config), "--auto-resume", "--set", "strategy.kind=async"]
    run = config.parent / "run"
    outputs = []
    for updates in (4, 6, 8):
        if updates == 6:  # as if killed before its first checkpoint
            shutil.rmtree(run / "checkpoints")
            (run / "summary.json").unlink()
        done = run_ranks(3, *command, "--set", f"training.updates={updates}", timeout=120.0, env=ENVIRON)
        outputs.append(done.check().stdout.splitlines())
    assert [lines[0] for lines in outputs] == ["job 123 (train, partition low), restart 2"] * 3
    assert [" begins again; " in lines[1] for lines in outputs] == [False, True, False]
    assert summary_of(config)["updates"] == 8 and summary_of(config)["processes"] == 2
    assert summary_of(config)["job"]["id"] == "123" and summary_of(config)["job"]["restarts"] == 2
    starts = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines() if '"start"' in line]
    assert [(event["version"], event["job"]["name"]) for event in starts] == [(0, "train"), (6, "train")]
    assert load_latest_checkpoint(run / "checkpoints") is not None
    refused = run_ranks(3, *command, "--set", "seed=2", timeout=120.0)
    assert refused.returncode == 2 and refused.stderr.count("seed: got 2, expected 1") == 1, str(refused)


KILLED_ONCE = """
import os, pathlib, signal
marker = pathlib.Path({marker!r})
if b"\\0train\\0" in pathlib.Path("/proc/self/cmdline").read_bytes() and not marker.exists():
    fsync, second = os.fsync, pathlib.Path({second!r})
    def dying(descriptor):
        if second.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)
    os.fsync = dying
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize(("restarts", "status"), [(1, 0), pytest.param(0, 137, marks=pytest.mark.slow)])
def test_a_failed_run_starts_again_as_often_as_allowed(config: pathlib.Path, restarts: int, status: int) -> None:
    site = config.parent / "site"
    site.mkdir()
    second = config.parent / "run/checkpoints/v00000002"  # the process is killed once this exists
    (site / "sitecustomize.py").write_text(KILLED_ONCE.format(marker=str(site / "killed"), second=str(second)))
    root = pathlib.Path(__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(root)])}
    sets = ("--set", "training.checkpoint_every=1", "--set", "training.keep_checkpoints=9")
    command = (sys.executable, "-m", "hvd_async", "launch", str(config), "--restarts", str(restarts), *sets)
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status and (site / "killed").exists(), done
    lines = [line for line in done.stdout.splitlines() if line.startswith("launch: ")]
    assert lines[0].startswith("launch: failed after ") and lines[0].endswith(
        "exit status 137; restart 1 of 1, with --auto-resume"
        if restarts
        else "exit status 137; saved: version 2, resume with --resume"
    )
    if restarts:
        assert lines[1].startswith("launch: done after ") and summary_of(config)["updates"] == 4
        log = [json.loads(line) for line in (config.parent / "run/events.jsonl").read_text().splitlines()]
        assert sorted(event["batch"] for event in log if event["event"] == "arrival") == [0, 1, 2, 3]
        assert summary_of(config)["processes"] == 2
