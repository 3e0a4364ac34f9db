"""Rescue on real ranks: intact state is saved before a failure ends the job, and ranks that wait stop waiting."""

from __future__ import annotations

import dataclasses
import pathlib
import signal
from typing import Any

import pytest

from tests.mpi.runs import checkpoint_checksum, events_of, losses_of, resumed, run_toy, summary_of
from tests.mpi.test_faults import NUM_BATCHES, assert_fired, messages, settings, sharded
from tests.mpi.toy import Settings
from tests.ranks import mpi_family

pytestmark = pytest.mark.mpi


def finish(first: Settings, num_ranks: int) -> None:
    """Resume the run of `first`, and check that every batch is used once and every version measured, whatever happened
    before.
    """
    folder = pathlib.Path(first.config["output"])
    run_toy(num_ranks, resumed(first)).check()
    num_batches = first.num_batches or 0
    assert sorted(event["batch"] for event in events_of(folder, "arrival")) == list(range(num_batches))
    summary = summary_of(folder)
    assert summary["status"] == "finished" and summary["unmeasured"] == []
    every = first.config["validation"]["every"]
    expected = {*range(every, summary["updates"] + 1, every), summary["updates"]}
    assert sorted(m["version"] for m in summary["measurements"]) == sorted(expected)
    assert [path.name for path in (folder / "snapshots").iterdir()] == []


def saved_updates(folder: pathlib.Path) -> int:
    """Return the number of updates that the checkpoint holds: by default there is no checkpoint before the end."""
    (checkpoint,) = (folder / "checkpoints").glob("v*")
    return int(checkpoint.name[1:])


STORES: dict[str, tuple[int, dict[str, Any]]] = {
    "dedicated": (3, {"strategy": {"arrivals_per_update": 2}}),
    "colocated": (2, {"strategy": {"arrivals_per_update": 1, "placement": "colocated"}}),
    "overlap": (3, {"strategy": {"arrivals_per_update": 1}, "push": {"overlap": True}}),
}


@pytest.mark.parametrize(
    "where", ["dedicated", *(pytest.param(w, marks=pytest.mark.slow) for w in ("colocated", "overlap"))]
)
def test_a_workers_failure_loses_no_update_of_the_store(tmp_path: pathlib.Path, where: str) -> None:
    num_ranks, sections = STORES[where]
    first = settings(tmp_path / "run", (num_ranks - 1, 8, "exception"), **sections["strategy"])
    first.config.update({key: section for key, section in sections.items() if key != "strategy"})
    done = run_toy(num_ranks, first)
    assert_fired(done, "exception")
    assert not done.timed_out and done.returncode != 0, str(done)
    assert messages(done) == [f"hvd-async: rank {num_ranks - 1}: ZeroDivisionError: injected"]
    assert saved_updates(tmp_path / "run") >= 4
    finish(first, num_ranks)


@pytest.mark.slow
def test_a_workers_failure_loses_no_update_of_several_shards(tmp_path: pathlib.Path) -> None:
    first = dataclasses.replace(sharded(tmp_path / "run", 2, (2, 8, "exception")), num_batches=30)
    first.config["strategy"]["arrivals_per_update"] = 1
    done = run_toy(3, first)
    assert_fired(done, "exception")
    assert messages(done) == ["hvd-async: rank 2: ZeroDivisionError: injected"], str(done)
    assert saved_updates(tmp_path / "run") == 8
    finish(first, 3)


def colocated_shards(folder: pathlib.Path, **fault: Any) -> Settings:
    """Return settings for two ranks, each with a worker and a shard of the store."""
    first = dataclasses.replace(
        sharded(folder, 2), num_batches=30, faults=[{"rank": 1, "step": 8, "kind": "exception", **fault}]
    )
    first.config["strategy"] |= {"arrivals_per_update": 1, "placement": "colocated"}
    first.config["emulation"] = {"seconds": 0.02}  # otherwise the first rank may be done before the other takes step 8
    return first


def test_a_worker_that_fails_beside_a_shard_loses_no_update_of_the_shard(tmp_path: pathlib.Path) -> None:
    first = colocated_shards(tmp_path / "run")
    done = run_toy(2, first)
    assert_fired(done, "exception")
    assert not done.timed_out and messages(done) == ["hvd-async: rank 1: ZeroDivisionError: injected"], str(done)
    assert saved_updates(tmp_path / "run") >= 8
    finish(first, 2)


def test_a_shard_that_fails_beside_a_worker_ends_the_job_with_its_message(tmp_path: pathlib.Path) -> None:
    first = colocated_shards(tmp_path / "run", in_shard=True)
    done = run_toy(2, first)
    assert_fired(done, "exception")
    assert not done.timed_out and done.returncode != 0, str(done)
    assert messages(done) == ["hvd-async: rank 1: ZeroDivisionError: injected"], str(done)
    assert not list((tmp_path / "run/checkpoints").glob("v*"))  # a part of the parameters is lost


def test_a_workers_death_is_detected_and_the_stores_updates_are_saved(tmp_path: pathlib.Path) -> None:
    if mpi_family() != "openmpi":
        pytest.skip("MPICH's mpiexec kills the others at once")
    first = settings(tmp_path / "run", (2, 8, "sigkill"), arrivals_per_update=1)
    # slow enough for the store, which looks ten times a second, to have seen the worker alive
    first.config["emulation"] = {"seconds": 0.05}
    # By default mpirun kills the other ranks within half a second, which may or may not suffice.
    done = run_toy(3, first, mpirun_args=["--rtos", "recoverable"])
    assert_fired(done, "sigkill")
    assert not done.timed_out and done.returncode != 0, str(done)
    assert any("worker 1 is dead: its process" in line for line in messages(done)), str(done)
    assert saved_updates(tmp_path / "run") >= 8
    finish(first, 3)


@pytest.mark.parametrize("kind", ["async", pytest.param("horovod", marks=pytest.mark.slow)])
def test_ranks_whose_launcher_is_killed_save_and_end(tmp_path: pathlib.Path, kind: str) -> None:
    first = settings(tmp_path / "run", (1, 5, "orphan"), kind=kind)
    first.config["emulation"] = {"seconds": 0.1}
    done = run_toy(3, first, outlives_mpirun=True)
    assert not done.timed_out, str(done)
    assert done.returncode == -signal.SIGKILL, str(done)
    summary = summary_of(tmp_path / "run")
    assert (summary["status"], summary["stop"]["kind"]) == ("stopped", "orphaned")
    assert 0 < summary["updates"] < NUM_BATCHES // 2
    finish(first, 3)


@pytest.mark.parametrize("in_evaluation", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_worker_that_computes_for_longer_than_the_timeouts_counts_as_alive(
    tmp_path: pathlib.Path, in_evaluation: bool
) -> None:
    first = settings(tmp_path / "run", worker_timeout_seconds=1.0, store_timeout_seconds=1.0)
    first.config["validation"]["every"] = 1
    faults = [{"rank": rank, "step": 0, "kind": "pause", "in_evaluation": in_evaluation} for rank in (1, 2)]
    done = run_toy(3, dataclasses.replace(first, faults=faults)).check()
    # While one worker pauses at an evaluation, the other may compute all remaining batches.
    assert done.stderr.count("fault pause fired") >= (1 if in_evaluation else 2)
    assert summary_of(tmp_path / "run")["status"] == "finished"


@pytest.mark.slow
def test_a_slow_store_counts_as_alive(tmp_path: pathlib.Path) -> None:
    first = settings(tmp_path / "run", (0, 3, "pause"), store_timeout_seconds=1.0)
    assert_fired(run_toy(3, first).check(), "pause")
    assert summary_of(tmp_path / "run")["status"] == "finished"


@pytest.mark.slow
def test_a_worker_whose_step_exceeds_the_hang_timeout_counts_as_hung(tmp_path: pathlib.Path) -> None:
    first = settings(tmp_path / "run", (2, 8, "pause"), worker_timeout_seconds=0.7, hang_timeout_seconds=0.7)
    done = run_toy(3, first)
    assert_fired(done, "pause")
    assert done.returncode != 0 and any("worker 1 hangs: a step or an evaluation" in line for line in messages(done)), str(
        done
    )
    finish(first, 3)


@pytest.mark.parametrize("kind", ["horovod", pytest.param("ddp", marks=pytest.mark.slow)])
def test_a_synchronous_rank_that_hangs_ends_the_job_after_the_configured_time(tmp_path: pathlib.Path, kind: str) -> None:
    first = settings(tmp_path / "broken", (1, 6, "sigstop"), kind=kind, worker_timeout_seconds=2.0)
    done = run_toy(2, first)
    assert_fired(done, "sigstop")
    assert not done.timed_out and done.returncode != 0, str(done)
    assert "worker_timeout_seconds" in messages(done)[0], str(done)
    assert saved_updates(tmp_path / "broken") == 6
    unbroken = settings(tmp_path / "unbroken", kind=kind)
    run_toy(2, resumed(first), unbroken).check()
    assert losses_of(tmp_path / "broken") == losses_of(tmp_path / "unbroken")
    assert checkpoint_checksum(tmp_path / "broken") == checkpoint_checksum(tmp_path / "unbroken")


@pytest.mark.parametrize("kind", ["horovod", pytest.param("ddp", marks=pytest.mark.slow)])
def test_a_synchronous_ranks_failure_loses_no_update_of_rank_0(tmp_path: pathlib.Path, kind: str) -> None:
    first = settings(tmp_path / "run", (1, 6, "error"), kind=kind)
    done = run_toy(2, first)
    assert_fired(done, "error")
    assert not done.timed_out and (done.returncode == 1 or mpi_family() == "mpich"), str(done)
    assert messages(done) == ["hvd-async: rank 1: injected error"]
    assert saved_updates(tmp_path / "run") == 6
    finish(first, 2)


@pytest.mark.parametrize("kind", ["async", *(pytest.param(k, marks=pytest.mark.slow) for k in ("horovod", "ddp"))])
def test_a_request_to_stop_does_not_wait_for_ever_for_a_rank_that_hangs(tmp_path: pathlib.Path, kind: str) -> None:
    first_worker = 1 if kind == "async" else 0
    # A synchronous rank reaches its step only together with the other; an asynchronous one is to hang long before.
    faults = ((first_worker + 1, 2 if kind == "async" else 6, "sigstop"), (first_worker, 6, "sigterm"))
    first = settings(tmp_path / "run", *faults, kind=kind, stop_timeout_seconds=2.0)
    first.config["emulation"] = {"seconds": 0.05}
    done = run_toy(first_worker + 2, first)
    assert sorted(fault.split()[1] for fault in done.stderr.splitlines() if fault.startswith("fault ")) == [
        "sigstop",
        "sigterm",
    ]
    assert not done.timed_out and done.returncode != 0, str(done)
    assert any("stop_timeout_seconds" in line for line in messages(done)), str(done)
    summary = summary_of(tmp_path / "run")
    assert summary["status"] == "stopped" and summary["stop"]["signal"] == "SIGTERM"
    finish(first, first_worker + 2)


@pytest.mark.parametrize(("kind", "num_ranks"), [("async", 3), pytest.param("horovod", 2, marks=pytest.mark.slow)])
def test_a_run_that_diverges_ends_and_reports_it(tmp_path: pathlib.Path, kind: str, num_ranks: int) -> None:
    faults = [(rank, step, "nan") for rank in range(num_ranks) for step in range(4, 60)]
    first = settings(tmp_path / "run", *faults, kind=kind)
    first.config["training"] = {"updates": 100, "device": "cpu", "tensorboard": False, "diverged_after": 12}
    first.config["emulation"] = {"seconds": 0.05}  # otherwise many more arrive before the workers see that they are to stop
    done = run_toy(num_ranks, dataclasses.replace(first, num_batches=None))
    assert not done.timed_out and done.returncode != 0, str(done)
    assert any("diverged: gradients or validation losses are no longer finite" in line for line in messages(done)), str(done)
    summary = summary_of(tmp_path / "run")
    assert summary["status"] == "diverged" and 12 <= summary["refused"]["not_finite"] < 20


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_measuring_after_training_resumes_where_it_was_interrupted(tmp_path: pathlib.Path, number: signal.Signals) -> None:
    first = settings(tmp_path / "run")
    first.config["validation"] = {"every": 3, "when": "after"}
    fault = {"rank": 1, "step": 3, "kind": number.name.lower(), "in_evaluation": True}
    done = run_toy(3, dataclasses.replace(first, faults=[fault]))
    assert_fired(done, number.name.lower())
    assert not done.timed_out and done.returncode != 0, str(done)
    if number == signal.SIGTERM:
        assert summary_of(tmp_path / "run")["status"] == "stopped"
        assert len(summary_of(tmp_path / "run")["measurements"]) == 4
    finish(first, 3)


@pytest.mark.parametrize(
    ("kind", "seconds", "message"),
    [
        ("error", 0.4, "injected error"),
        pytest.param("exception", 1.5, "ZeroDivisionError: injected", marks=pytest.mark.slow),
    ],
)
def test_a_store_that_fails_while_its_disk_is_slow_reports_why_and_finishes_writing(
    tmp_path: pathlib.Path, kind: str, seconds: float, message: str
) -> None:
    """After an exception, which may occur in the middle of an update, the previous checkpoint is finished."""
    # shorter than writing a checkpoint takes
    first = settings(tmp_path / "run", (0, 4, kind), store_timeout_seconds=4 * seconds)
    first.config["training"]["checkpoint_every"] = 2
    done = run_toy(3, dataclasses.replace(first, slow_disk=seconds))
    assert_fired(done, kind)
    assert not done.timed_out and (done.returncode == 1 or mpi_family() == "mpich"), str(done)
    assert messages(done) == [f"hvd-async: rank 0: {message}"]
    assert saved_updates(tmp_path / "run") >= 2
    finish(first, 3)


@pytest.mark.parametrize("kind", ["async", "single"])
def test_a_full_disk_is_reported_in_one_line(tmp_path: pathlib.Path, kind: str) -> None:
    num_ranks = 3 if kind == "async" else 1
    first = settings(tmp_path / "run", kind=kind)
    first.config["training"]["checkpoint_every"] = 1
    done = run_toy(num_ranks, dataclasses.replace(first, file_bytes=9000))
    assert not done.timed_out and (done.returncode == 3 or mpi_family() == "mpich"), str(done)
    assert len(messages(done)) == 1 and messages(done)[0].endswith("events.jsonl: cannot be written: File too large"), str(
        done
    )
    assert "Traceback" not in done.stderr
    finish(first, num_ranks)
