"""The store's process dies at every point of its work: whoever holds its memory saves all that it had, and the run goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from hvd_async.cli.holding import StoreKeeper
from hvd_async.errors import DataError
from hvd_async.replay.replay import ReplayOptions, replay
from hvd_async.runs.checkpoint import list_checkpoints, read_data
from hvd_async.runs.event_log import read_events
from hvd_async.system.launch_page import tell_keeper
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from hvd_async.transport import host_memory
from tests.comparison.processes import until
from tests.mpi.runs import checkpoint_checksum, events_of, losses_of, run_toy, summary_of, write_config
from tests.mpi.test_rescue import finish
from tests.mpi.toy import Settings, ToyTask, make_config
from tests.ranks import run_limited

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(not host_memory.is_available(), reason="no memory without a name, or no C extension"),
]

NUM_BATCHES = 36
KINDS: dict[str, dict[str, Any]] = {
    "lock-step": {"strategy": {"lockstep": True}, "optimizer": {"average_decay": 0.9}},
    "workers": {"strategy": {"provisional": True}, "optimizer": {"clip_norm": 0.1}},
    "one": {"strategy": {"arrivals_per_update": 1}, "optimizer": {"kind": "sgd", "momentum": 0.9}},
    "many": {"strategy": {"arrivals_per_update": 7, "provisional": True}},
    "bounded": {"strategy": {"arrivals_per_update": 2, "max_staleness": 1}},
    "dropped": {"strategy": {"arrivals_per_update": 3, "max_staleness": 0, "on_stale": "drop"}},
    "inverse": {"strategy": {"arrivals_per_update": 4, "staleness_policy": "inverse"}},
    "compensated": {"strategy": {"arrivals_per_update": 3, "staleness_policy": "delay_compensation"}},
    "few": {"strategy": {"arrivals_per_update": 5}, "push": {"keep": 0.1, "error_feedback": True}},
    "node sum": {"push": {"node_sum": True}},
    "overlap": {"push": {"overlap": True, "dtype": "bfloat16"}},
    "groups": {"optimizer": {"kind": "adamw", "weight_decay": 0.1, "groups": [{"match": ["*.bias"], "weight_decay": 0.0}]}},
}
# Writes of the store between two versions, and a little more.
NUM_WRITES = 60


def settings(folder: pathlib.Path, kind: str, *faults: Mapping[str, Any], **changes: Any) -> Settings:
    sections = {
        "validation": {"every": 3},
        "emulation": {"seconds": 0.02},
        "training": {"hash_every": 1},
        **KINDS[kind],
    }
    sections["strategy"] = {"kind": "async", **sections.get("strategy", {})}
    return Settings(
        make_config(folder, **sections), num_batches=NUM_BATCHES, faults=[dict(each) for each in faults], **changes
    )


@contextlib.contextmanager
def keeping(folder: pathlib.Path, patience_seconds: float = 0.0) -> Iterator[StoreKeeper]:
    """Keep the memory of the store of the run in `folder`, whose ranks are started elsewhere."""
    with StoreKeeper(patience_seconds=patience_seconds) as keeper:
        tell_keeper(os.environ, folder)
        yield keeper


def latest_keys(folder: pathlib.Path) -> dict[str, set[str]]:
    """Return the keys of each section of the last checkpoint's data."""
    data = read_data(list_checkpoints(folder / "checkpoints")[-1]).data
    return {name: set(section) for name, section in data.items() if isinstance(section, dict)} | {"": set(data)}


def break_and_finish(folder: pathlib.Path, first: Settings, num_ranks: int) -> int:
    """Run `first`, whose store dies; save what it left, and finish the run. Return the version that was saved."""
    with keeping(folder) as keeper:
        done = run_toy(num_ranks, first)
        assert f"fault {first.faults[0]['kind']} fired on rank {first.faults[0]['rank']}" in done.stderr, str(done)
        assert done.returncode != 0
        line, goes_on = keeper.save()
    found = re.match(
        r"launch: the store's process has died; version (\d+) is saved from its memory \(saved before: (.*)\)", line
    )
    assert found is not None and goes_on, (line, str(done))
    assert found[2] == "none" or "checkpoint_every" in first.config["training"]
    saved = latest_keys(folder)
    version = int(found[1])
    assert version == max([0, *(event["version"] for event in events_of(folder, "update"))])
    (lost,) = events_of(folder, "store_lost")
    assert lost["version"] == version
    finish(first, num_ranks)
    assert saved == latest_keys(folder)
    assert summary_of(folder)["processes"] == 2
    verdict = replay(
        folder, lambda config: ToyTask(Settings({}, hidden=first.hidden), 0), ReplayOptions(), lambda line: None
    )
    assert verdict.hashes >= verdict.versions // 2
    return version


def check_lockstep(tmp_path: pathlib.Path, *faults: Mapping[str, Any], kind: str = "lock-step", **sections: Any) -> None:
    """Check that a broken run in lock-step ends like an unbroken one, to the last bit."""
    unbroken = settings(tmp_path / "unbroken", kind)
    broken = settings(tmp_path / "broken", kind, *faults)
    for each in (unbroken, broken):
        each.config.update(sections)
    num_ranks = 3 if "store" not in sections else 4
    if not (tmp_path / "unbroken").exists():
        run_toy(num_ranks, unbroken).check()
    version = break_and_finish(tmp_path / "broken", broken, num_ranks)
    assert version >= faults[0]["step"] or faults[0].get("in_shard") is not None
    assert losses_of(tmp_path / "broken") == losses_of(tmp_path / "unbroken")
    assert checkpoint_checksum(tmp_path / "broken") == checkpoint_checksum(tmp_path / "unbroken")


@pytest.mark.parametrize("write", [3, pytest.param(None, marks=pytest.mark.slow)])
def test_a_run_in_lock_step_whose_store_dies_ends_with_the_same_bits(tmp_path: pathlib.Path, write: int | None) -> None:
    check_lockstep(tmp_path, {"rank": 0, "step": 5, "kind": "sigkill", "write": write})


@pytest.mark.slow
@pytest.mark.parametrize("write", range(0, NUM_WRITES, 2))
def test_wherever_the_store_dies_a_run_in_lock_step_ends_with_the_same_bits(tmp_path: pathlib.Path, write: int) -> None:
    check_lockstep(tmp_path, {"rank": 0, "step": 4, "kind": "sigkill", "write": write})


@pytest.mark.parametrize(
    ("kind", "write"),
    [("many", 11)]
    + [pytest.param(kind, write, marks=pytest.mark.slow) for kind in KINDS for write in (0, 7, 16, 25, 33, 41)],
)
def test_no_arrival_is_lost_or_counts_twice_when_the_store_dies(tmp_path: pathlib.Path, kind: str, write: int) -> None:
    first = settings(tmp_path / "run", kind, {"rank": 0, "step": 2, "kind": "sigsegv", "write": write})
    version = break_and_finish(tmp_path / "run", first, 4)
    assert version >= 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lock-step", "many", "node sum"])
@pytest.mark.parametrize("write", [2, 13, 24])
def test_a_checkpoint_of_the_same_process_is_no_hindrance(tmp_path: pathlib.Path, kind: str, write: int) -> None:
    first = settings(tmp_path / "run", kind, {"rank": 0, "step": 3, "kind": "sigkill", "write": write})
    first.config["training"]["checkpoint_every"] = 2
    first.config["optimizer"]["average_decay"] = 0.0  # averages are kept of the last version alone
    assert break_and_finish(tmp_path / "run", first, 3) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["many", "one", "dropped"])
@pytest.mark.parametrize("write", [1, 9, 18, 30])
@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_refused_gradients_are_counted_once(tmp_path: pathlib.Path, kind: str, write: int, checkpoint_every: int) -> None:
    """Worker 2 computes a gradient that is not finite at each of its first steps."""
    nans = [{"rank": 2, "step": step, "kind": "nan"} for step in range(6)]
    first = settings(tmp_path / "run", kind, {"rank": 0, "step": 1, "kind": "sigkill", "write": write}, *nans)
    first.config["training"] |= {"checkpoint_every": checkpoint_every, "diverged_after": 1000}
    break_and_finish(tmp_path / "run", first, 3)
    refused = [event for event in events_of(tmp_path / "run", "arrival") if "refused" in event]
    assert len(refused) == sum(summary_of(tmp_path / "run")["refused"].values())
    assert refused or kind == "one"  # worker 1 alone may have made the version at which the store dies


@pytest.mark.slow
def test_a_resumed_run_whose_store_dies_goes_on_with_its_clock_and_pending_arrivals(tmp_path: pathlib.Path) -> None:
    first = settings(tmp_path / "run", "many", {"rank": 2, "step": 5, "kind": "exception"})
    assert run_toy(4, first).returncode != 0  # saved, with pending arrivals or without
    before = events(tmp_path / "run")[-1]["seconds"]
    second = dataclasses.replace(first, resume=True, faults=[{"rank": 0, "step": 3, "kind": "sigkill", "write": 12}])
    second.config["training"]["checkpoint_every"] = 1
    with keeping(tmp_path / "run") as keeper:
        assert run_toy(4, second).returncode != 0
        assert keeper.save()[1]
    data = read_data(list_checkpoints(tmp_path / "run/checkpoints")[-1]).data
    assert data["recorder"]["seconds"] >= before
    finish(first, 4)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["newest checkpoint", "log", "folder"])
def test_a_damaged_folder_costs_no_more_than_it_must(tmp_path: pathlib.Path, what: str) -> None:
    folder = tmp_path / "run"
    first = settings(folder, "workers", {"rank": 0, "step": 6, "kind": "sigkill", "write": 5})
    first.config["training"] |= {"checkpoint_every": 2, "keep_checkpoints": 2}
    with keeping(folder) as keeper:
        assert run_toy(3, first).returncode != 0
        newest = list_checkpoints(folder / "checkpoints")[-1]
        if what == "newest checkpoint":
            (newest / "data.json").write_text("{")
        elif what == "log":
            lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
            (folder / "events.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
        else:
            shutil.rmtree(folder / "checkpoints")
            (folder / "checkpoints").write_text("a file")
        line, goes_on = keeper.save()
    assert goes_on == (what == "newest checkpoint"), line
    if goes_on:
        finish(first, 3)
    else:
        assert line.startswith("launch: the store's memory could not be saved: ") and "Traceback" not in line


@pytest.mark.slow
def test_the_only_copy_is_not_thrown_away_while_the_folder_cannot_be_written(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, away = tmp_path / "run", tmp_path / "away"
    first = settings(folder, "workers", {"rank": 0, "step": 6, "kind": "sigkill", "write": 5})
    with keeping(folder, patience_seconds=60) as keeper:
        assert run_toy(3, first).returncode != 0
        folder.rename(away)
        back = threading.Timer(2.0, lambda: away.rename(folder))
        back.start()
        line, goes_on = keeper.save()
        back.join()
    assert goes_on and "is saved from its memory" in line
    assert "could not be saved: " in (told := capfd.readouterr().err) and "tries again for 60 s" in told
    finish(first, 3)


@pytest.mark.slow
def test_a_script_that_names_its_folder_itself_goes_on(tmp_path: pathlib.Path) -> None:
    program = (sys.executable, "-m", "examples.digits.train", "--epochs", "30", "--output", str(tmp_path / "run"))
    command = (sys.executable, "-m", "hvd_async", "launch", "-w", "2", "--set", "strategy.kind=async", "--", *program)
    environ = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    with subprocess.Popen(
        command, env=environ, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as job:
        until(lambda: sum(event["event"] == "update" for event in events(tmp_path / "run")) > 20)
        place = json.loads((tmp_path / "run/join.json").read_text())["places"][0]
        os.kill(place["process"], signal.SIGKILL)
        output, _ = job.communicate(timeout=120)
    assert job.returncode == 0, output
    assert "is saved from its memory" in output and summary_of(tmp_path / "run")["processes"] == 2, output
    batches = [event["batch"] for event in events_of(tmp_path / "run", "arrival")]
    assert len(batches) == len(set(batches))


@pytest.mark.slow
def test_launch_goes_on_when_the_store_is_killed(tmp_path: pathlib.Path) -> None:
    write_corpus(tmp_path / "text", train=200, validation=8, test=8)
    path = write_config(
        tmp_path, strategy={"kind": "async"}, training={"weight": 3000}, emulation={"seconds": 0.1}, validation={"every": 4}
    )
    command = (sys.executable, "-m", "hvd_async", "launch", str(path), "--workers", "2")
    environ = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        until(lambda: any(event["event"] == "update" for event in events(tmp_path / "run")))
        place = json.loads((tmp_path / "run/join.json").read_text())["places"][0]
        os.kill(place["process"], signal.SIGKILL)
        output, _ = job.communicate(timeout=120)
    assert job.returncode == 0, output
    assert "if the store dies" not in output
    assert re.search(r"launch: done after 0:\d\d:\d\d; 2 starts, 0:\d\d:\d\d in all$", output.strip()), output
    assert "is saved from its memory" in output and "; restart 1 of 3, with --auto-resume" in output, output
    assert summary_of(tmp_path / "run")["processes"] == 2
    done = run_limited((sys.executable, "-m", "hvd_async", "replay", str(tmp_path / "run")), environ, 60).check()
    assert "all to the last bit" in done.stdout


def events(folder: pathlib.Path) -> list[dict[str, Any]]:
    with contextlib.suppress(DataError):
        return list(read_events(folder / "events.jsonl"))
    return []


@pytest.mark.slow
def test_an_exception_in_the_store_costs_nothing(tmp_path: pathlib.Path) -> None:
    first = settings(tmp_path / "run", "workers", {"rank": 0, "step": 4, "kind": "exception", "write": 9})
    break_and_finish(tmp_path / "run", first, 3)


@pytest.mark.slow
@pytest.mark.parametrize("order", [5, 12, 19])
@pytest.mark.parametrize("kind", ["sigkill", "sigstop"])
def test_the_death_of_another_shard_costs_nothing(tmp_path: pathlib.Path, kind: str, order: int) -> None:
    """One that is stopped goes on when mpirun wakes it, to end it."""
    first = settings(tmp_path / "run", "many", {"rank": 1, "step": order, "kind": kind}, hidden=2000)
    first.config["store"] = {"shards": 2}
    first.config["strategy"]["store_timeout_seconds"] = 2.0
    break_and_finish(tmp_path / "run", first, 4)


@pytest.mark.slow
def test_a_store_may_die_again_and_again(tmp_path: pathlib.Path) -> None:
    check_lockstep(tmp_path, {"rank": 0, "step": 3, "kind": "sigkill", "write": 5})
    first = settings(tmp_path / "again", "lock-step", {"rank": 0, "step": 3, "kind": "sigkill", "write": 5})
    with keeping(tmp_path / "again") as keeper:
        assert run_toy(3, first).returncode != 0 and keeper.save()[1]
        second = dataclasses.replace(first, resume=True, faults=[{"rank": 0, "step": 8, "kind": "sigkill", "write": 13}])
        assert run_toy(3, second).returncode != 0 and keeper.save()[1]
    finish(first, 3)
    assert checkpoint_checksum(tmp_path / "again") == checkpoint_checksum(tmp_path / "unbroken")


@pytest.mark.slow
def test_a_store_that_has_saved_its_state_is_left_alone(tmp_path: pathlib.Path) -> None:
    first = settings(tmp_path / "run", "workers", {"rank": 2, "step": 4, "kind": "exception"})
    with keeping(tmp_path / "run") as keeper:
        assert run_toy(3, first).returncode != 0
        before = [path.stat().st_mtime_ns for path in (tmp_path / "run/checkpoints").rglob("*")]
        assert keeper.save() == ("", False)
    assert before and before == [path.stat().st_mtime_ns for path in (tmp_path / "run/checkpoints").rglob("*")]
