"""Faults at given coordinates (rank, step), on real ranks: every job ends as promised, within the time limit."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
import signal

import pytest

from tests.mpi.runs import checkpoint_checksum, events_of, losses_of, resumed, run_toy, summary_of
from tests.mpi.toy import Settings, make_config
from tests.ranks import Completed, mpi_family
from tests.runs.saved import load_latest_checkpoint

pytestmark = pytest.mark.mpi

NUM_BATCHES = 36


def settings(folder: pathlib.Path, *faults: tuple[int, int, str], kind: str = "async", **strategy: object) -> Settings:
    configuration = make_config(folder, strategy={"kind": kind, **strategy}, validation={"every": 4})
    described = [{"rank": rank, "step": step, "kind": name} for rank, step, name in faults]
    return Settings(configuration, num_batches=NUM_BATCHES, faults=described)


def messages(done: Completed) -> list[str]:
    """Return our own messages on standard error, one for each rank that had one. mpirun may print bytes of its own
    before them.
    """
    return re.findall(r"hvd-async: .*", done.stderr)


def assert_fired(done: Completed, *kinds: str) -> None:
    assert re.findall(r"fault (\w+) fired", done.stderr) == list(kinds), str(done)


def assert_aborted(done: Completed) -> None:
    """Check that the job ended in time and with our status; MPICH's mpiexec reports the status of ranks that it killed
    instead.
    """
    assert not done.timed_out and done.returncode != 0, str(done)
    assert done.returncode == 1 or mpi_family() == "mpich", str(done)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_an_exception_on_any_rank_ends_the_job_with_its_message_alone(tmp_path: pathlib.Path, rank: int) -> None:
    done = run_toy(3, settings(tmp_path / "run", (rank, 3, "exception")))
    assert_fired(done, "exception")
    assert_aborted(done)
    assert messages(done) == [f"hvd-async: rank {rank}: ZeroDivisionError: injected"]


@pytest.mark.parametrize("kind", ["horovod", "ddp"])
def test_an_error_on_one_synchronous_rank_ends_the_job_with_its_message(tmp_path: pathlib.Path, kind: str) -> None:
    done = run_toy(2, settings(tmp_path / "run", (1, 2, "error"), kind=kind))
    assert_fired(done, "error")
    assert_aborted(done)
    assert messages(done)[0] == "hvd-async: rank 1: injected error"


def test_a_failing_worker_ends_a_colocated_store_and_vice_versa(tmp_path: pathlib.Path) -> None:
    for rank in (0, 1):
        done = run_toy(2, settings(tmp_path / f"run{rank}", (rank, 2, "error"), placement="colocated"))
        assert_fired(done, "error")
        assert_aborted(done)
        assert messages(done) == [f"hvd-async: rank {rank}: injected error"]


def test_a_killed_worker_ends_the_job(tmp_path: pathlib.Path) -> None:
    done = run_toy(3, settings(tmp_path / "run", (2, 2, "sigkill")))
    assert_fired(done, "sigkill")
    assert not done.timed_out and done.returncode != 0, str(done)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_on_any_rank_saves_everything_and_a_resumed_run_uses_every_batch_once(
    tmp_path: pathlib.Path, rank: int
) -> None:
    first = settings(tmp_path / "run", (rank, 4, "sigterm"), arrivals_per_update=4)
    done = run_toy(3, first)
    assert_fired(done, "sigterm")
    assert not done.timed_out and done.returncode == 128 + signal.SIGTERM, str(done)
    assert len(messages(done)) == 1 and f"stopped by SIGTERM on rank {rank}, everything saved" in messages(done)[0]
    assert summary_of(tmp_path / "run")["status"] == "stopped"
    run_toy(3, resumed(first)).check()
    arrivals = events_of(tmp_path / "run", "arrival")
    assert sorted(a["batch"] for a in arrivals) == list(range(NUM_BATCHES))
    assert [u["version"] for u in events_of(tmp_path / "run", "update")] == list(range(1, 10))
    assert summary_of(tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize(
    ("kind", "num_ranks", "strategy"),
    [("async", 3, {"lockstep": True}), ("horovod", 2, {}), ("single", 1, {})],
)
def test_a_stopped_and_resumed_run_equals_an_unbroken_one_to_the_last_bit(
    tmp_path: pathlib.Path, kind: str, num_ranks: int, strategy: dict[str, object]
) -> None:
    broken = settings(tmp_path / "broken", (num_ranks - 1, 5, "sigint"), kind=kind, **strategy)
    done = run_toy(num_ranks, broken)
    assert_fired(done, "sigint")
    assert done.returncode == 128 + signal.SIGINT, str(done)
    stopped_at = len(losses_of(tmp_path / "broken"))
    unbroken = settings(tmp_path / "unbroken", kind=kind, **strategy)
    run_toy(num_ranks, resumed(broken), unbroken).check()
    assert 0 < stopped_at < len(losses_of(tmp_path / "unbroken"))
    assert losses_of(tmp_path / "broken") == losses_of(tmp_path / "unbroken")
    assert checkpoint_checksum(tmp_path / "broken") == checkpoint_checksum(tmp_path / "unbroken")
    broken_points, unbroken_points = (
        sorted((m["version"], m["scores"]["loss"]) for m in summary_of(tmp_path / name)["measurements"])
        for name in ("broken", "unbroken")
    )
    assert broken_points == unbroken_points


def test_a_gradient_that_is_not_finite_is_refused_and_counted_and_training_continues(tmp_path: pathlib.Path) -> None:
    runs = {
        "async": settings(tmp_path / "async", (1, 2, "nan"), (2, 3, "nan"), arrivals_per_update=2),
        "lockstep": settings(tmp_path / "lockstep", (1, 2, "nan"), lockstep=True),
    }
    done = run_toy(3, *runs.values()).check()
    assert done.stderr.count("fault nan fired") == 3
    for name, refused in (("async", 2), ("lockstep", 1)):
        summary = summary_of(tmp_path / name)
        assert summary["refused"] == {"not_finite": refused}
        assert sum(int(count) for count in summary["staleness"].values()) == NUM_BATCHES - refused
        assert math.isfinite(summary["last"]["scores"]["loss"])


def test_a_gradient_that_is_not_finite_spoils_only_its_synchronous_step(tmp_path: pathlib.Path) -> None:
    run_toy(2, settings(tmp_path / "run", (1, 2, "nan"), kind="horovod")).check()
    assert summary_of(tmp_path / "run")["refused"] == {"not_finite": 2}
    assert len(losses_of(tmp_path / "run")) == NUM_BATCHES // 2 - 1


def test_a_slow_worker_claims_fewer_batches_and_holds_no_other_back(tmp_path: pathlib.Path) -> None:
    base = settings(tmp_path / "run", arrivals_per_update=1)
    run_toy(3, dataclasses.replace(base, config={**base.config, "emulation": {"slow_workers": {0: 40.0}}})).check()
    workers = summary_of(tmp_path / "run")["workers"]
    arrivals = {worker: numbers["arrivals"] for worker, numbers in workers.items()}
    assert arrivals.get("0", 0) < arrivals["1"] and sum(arrivals.values()) == NUM_BATCHES


def test_a_damaged_checkpoint_is_reported_in_one_line_by_one_rank_and_no_rank_starts(tmp_path: pathlib.Path) -> None:
    first = settings(tmp_path / "run")
    run_toy(3, first).check()
    damaged = next((tmp_path / "run" / "checkpoints").glob("v*/tensors.safetensors"))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    before = (tmp_path / "run" / "events.jsonl").read_bytes()
    done = run_toy(3, resumed(first))
    assert not done.timed_out and done.returncode == 5, str(done)
    assert len(messages(done)) == 1 and "checksum" in messages(done)[0]
    assert "there is no checkpoint before it; start again" in messages(done)[0]
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == before


def test_a_folder_that_holds_a_run_is_refused_and_kept(tmp_path: pathlib.Path) -> None:
    first = settings(tmp_path / "run")
    run_toy(2, first).check()
    done = run_toy(2, first)
    assert done.returncode == 2 and len(messages(done)) == 1 and "--overwrite" in messages(done)[0], str(done)
    assert load_latest_checkpoint(tmp_path / "run" / "checkpoints") is not None


@pytest.mark.slow
def test_a_resumed_run_refuses_another_optimizer_and_names_the_key(tmp_path: pathlib.Path) -> None:
    first = settings(tmp_path / "run")
    run_toy(2, first).check()
    other = json.loads(json.dumps(first.config))
    other["optimizer"]["learning_rate"] = 0.5
    done = run_toy(2, resumed(first, config=other))
    assert done.returncode == 2 and "optimizer.learning_rate: got 0.5, expected 0.05" in messages(done)[0], str(done)


def test_a_missing_device_is_refused_before_anything_is_written(tmp_path: pathlib.Path) -> None:
    first = settings(tmp_path / "run")
    first.config["training"]["device"] = "cuda:7"
    done = run_toy(2, first)
    assert done.returncode == 4 and len(messages(done)) == 1 and "cuda:7" in messages(done)[0], str(done)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_run_ends_early_when_patience_is_exhausted(tmp_path: pathlib.Path) -> None:
    first = settings(tmp_path / "run", arrivals_per_update=1)
    first.config["optimizer"]["learning_rate"] = 1e-30  # never improves
    first.config["validation"] = {"every": 2, "patience": 2}
    run_toy(3, dataclasses.replace(first, num_batches=4000, uneven=1)).check()
    summary = summary_of(tmp_path / "run")
    assert summary["status"] == "finished early"
    assert summary["updates"] < 4000
    assert sorted(a["batch"] for a in events_of(tmp_path / "run", "arrival")) == list(
        range(len(events_of(tmp_path / "run", "arrival")))
    )


def test_the_best_model_is_that_of_another_score_on_real_ranks(tmp_path: pathlib.Path) -> None:
    first = dataclasses.replace(settings(tmp_path / "run", arrivals_per_update=1), has_accuracy=True)
    first.config["validation"] = {"every": 2, "score": "bleu"}
    run_toy(3, first).check()
    summary = summary_of(tmp_path / "run")
    scores = [measurement["scores"]["bleu"] for measurement in summary["measurements"]]
    assert summary["best"] == summary["measurements"][scores.index(max(scores))] and len(set(scores)) > 1
    exported = json.loads((tmp_path / "run/models/best/exported.json").read_text())
    assert (exported["version"], exported["validation_bleu"]) == (summary["best"]["version"], max(scores))


def test_a_score_that_is_not_measured_is_refused_once_on_all_ranks(tmp_path: pathlib.Path) -> None:
    first = settings(tmp_path / "run")
    first.config["validation"] = {"score": "bleu"}  # which the toy measures only if asked
    done = run_toy(3, first)
    assert done.returncode == 2 and len(messages(done)) == 1, str(done)
    assert "validation.score: got 'bleu', expected a score that the task measures: loss" in messages(done)[0]
    assert not (tmp_path / "run").exists()


def test_a_run_bounded_by_updates_ends_at_that_version_and_counts_late_arrivals(tmp_path: pathlib.Path) -> None:
    first = settings(tmp_path / "run", arrivals_per_update=3)
    first.config["training"] = {"updates": 5, "device": "cpu", "tensorboard": False}
    run_toy(3, dataclasses.replace(first, num_batches=None)).check()
    summary = summary_of(tmp_path / "run")
    assert summary["updates"] == 5
    assert set(summary["refused"]) <= {"after_the_end"}


def test_a_signal_after_a_worker_has_left_still_stops_all_ranks(tmp_path: pathlib.Path) -> None:
    base = settings(tmp_path / "run", (1, 0, "sigterm"), arrivals_per_update=1)
    # Worker 0 takes so long for its first batch that worker 1 computes all others and leaves.
    done = run_toy(3, dataclasses.replace(base, config={**base.config, "emulation": {"slow_workers": {0: 300.0}}}))
    assert_fired(done, "sigterm")
    assert not done.timed_out and done.returncode == 128 + signal.SIGTERM, str(done)
    assert summary_of(tmp_path / "run")["status"] == "stopped"


def test_a_finished_run_resumes_to_a_longer_one_and_forgets_nothing(tmp_path: pathlib.Path) -> None:
    first = settings(tmp_path / "run", lockstep=True)
    whole = settings(tmp_path / "whole", lockstep=True)
    run_toy(
        3, first, resumed(first, num_batches=2 * NUM_BATCHES), dataclasses.replace(whole, num_batches=2 * NUM_BATCHES)
    ).check()
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")
    assert checkpoint_checksum(tmp_path / "run") == checkpoint_checksum(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["single", "horovod"])
def test_a_synchronous_run_ends_at_its_last_update_even_if_that_is_evaluated(tmp_path: pathlib.Path, kind: str) -> None:
    first = settings(tmp_path / "run", kind=kind)
    first.config["training"] = {"updates": 8, "device": "cpu", "tensorboard": False}
    run_toy(1 if kind == "single" else 2, dataclasses.replace(first, num_batches=None)).check()
    assert len(losses_of(tmp_path / "run")) == 8


def test_a_store_that_hangs_ends_the_job_on_both_hosts(tmp_path: pathlib.Path, two_hosts: tuple[str, str]) -> None:
    first = settings(tmp_path / "run", (0, 3, "sigstop"), store_timeout_seconds=3.0)
    done = run_toy(3, first, hosts=two_hosts)
    assert_fired(done, "sigstop")
    assert not done.timed_out and done.returncode != 0, str(done)
    assert any("store" in message and "3 s" in message for message in messages(done)), str(done)


# --- In the middle of a push ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [2, *(pytest.param(write, marks=pytest.mark.slow) for write in (0, 1, 3, 4))])
def test_a_worker_killed_in_a_push_ends_the_job_and_a_resumed_run_uses_every_batch_once(
    tmp_path: pathlib.Path, write: int
) -> None:
    """`write` is 0 for the gradient, then come its description, the word that announces it, the announcement after it,
    and that of the next pull.
    """
    first = settings(tmp_path / "run", arrivals_per_update=2, max_staleness=3)
    first.config["training"]["checkpoint_every"] = 1
    fault = {"rank": 2, "step": 6, "kind": "sigkill", "write": write}
    done = run_toy(3, dataclasses.replace(first, faults=[fault]))
    assert_fired(done, "sigkill")
    assert not done.timed_out and done.returncode != 0, str(done)
    batches = [event["batch"] for event in events_of(tmp_path / "run", "arrival")]
    assert len(set(batches)) == len(batches) and set(batches) <= set(range(NUM_BATCHES))
    versions = [event["version"] for event in events_of(tmp_path / "run", "update")]
    assert versions == list(range(1, len(versions) + 1)) and len(versions) >= 3
    run_toy(3, resumed(first)).check()
    assert sorted(event["batch"] for event in events_of(tmp_path / "run", "arrival")) == list(range(NUM_BATCHES))
    versions = [event["version"] for event in events_of(tmp_path / "run", "update")]
    assert versions == list(range(1, NUM_BATCHES // 2 + 1))
    assert summary_of(tmp_path / "run")["status"] == "finished"


# --- Several shards ---------------------------------------------------------------------------------------------------


def sharded(folder: pathlib.Path, shards: int, *faults: tuple[int, int, str], hidden: int = 2000) -> Settings:
    """Return settings of the toy with enough elements for 5 shards, unless `hidden` says otherwise; the store has ranks
    0 to `shards` - 1.
    """
    first = settings(folder, *faults, arrivals_per_update=2)
    first.config["store"] = {"shards": shards}
    return dataclasses.replace(first, hidden=hidden)


def test_an_exception_in_another_shard_ends_the_job_with_its_message_alone(tmp_path: pathlib.Path) -> None:
    done = run_toy(3, sharded(tmp_path / "run", 2, (1, 9, "exception")))
    assert_fired(done, "exception")
    assert_aborted(done)
    assert messages(done) == ["hvd-async: rank 1: ZeroDivisionError: injected"]


def test_a_killed_shard_ends_the_job(tmp_path: pathlib.Path) -> None:
    done = run_toy(3, sharded(tmp_path / "run", 2, (1, 9, "sigkill")))
    assert_fired(done, "sigkill")
    assert not done.timed_out and done.returncode != 0, str(done)


@pytest.mark.slow
def test_a_shard_that_hangs_ends_the_job_and_is_named(tmp_path: pathlib.Path) -> None:
    first = sharded(tmp_path / "run", 2, (1, 9, "sigstop"))
    first.config["strategy"]["store_timeout_seconds"] = 3.0
    done = run_toy(3, first)
    assert_fired(done, "sigstop")
    assert not done.timed_out and done.returncode != 0, str(done)
    assert [message for message in messages(done) if "shard 1 of the store (rank 1) gave no sign of life for 3 s" in message]


def test_a_signal_on_a_shards_rank_saves_everything_and_a_resumed_run_uses_every_batch_once(tmp_path: pathlib.Path) -> None:
    first = dataclasses.replace(sharded(tmp_path / "run", 2, (1, 9, "sigterm")), num_batches=300)
    first.config["validation"] = {"every": 60}
    done = run_toy(3, first)
    assert_fired(done, "sigterm")
    assert not done.timed_out and done.returncode == 128 + signal.SIGTERM, str(done)
    assert len(messages(done)) == 1 and "stopped by SIGTERM on rank 1, everything saved" in messages(done)[0]
    run_toy(3, resumed(first)).check()
    assert sorted(event["batch"] for event in events_of(tmp_path / "run", "arrival")) == list(range(300))
    assert summary_of(tmp_path / "run")["status"] == "finished"


@pytest.mark.slow
def test_more_shards_than_the_model_has_blocks_are_reported_in_one_line_by_one_rank(tmp_path: pathlib.Path) -> None:
    done = run_toy(3, sharded(tmp_path / "run", 2, hidden=8))
    assert not done.timed_out and done.returncode == 2, str(done)
    assert messages(done) == [
        "hvd-async: store.shards: got 2 for a model of 112 elements, expected at most 1: each holds whole blocks of 4096"
    ]
    assert not (tmp_path / "run").exists()  # the next attempt needs no --overwrite


def test_more_shards_than_ranks_are_reported_in_one_line_by_one_rank(tmp_path: pathlib.Path) -> None:
    done = run_toy(2, sharded(tmp_path / "run", 2))
    assert not done.timed_out and done.returncode == 4, str(done)
    assert messages(done) == [
        "hvd-async: strategy async with a dedicated store: got 2 ranks, expected at least 3 (2 are the store); use mpirun"
        " -np 3 or more, or strategy.placement: colocated"
    ]
    assert not (tmp_path / "run").exists()
