"""The strategies compared with each other on real ranks: where they must agree, they do."""

from __future__ import annotations

import pathlib

import pytest

from tests.mpi.runs import checkpoint_checksum, events_of, losses_of, run_toy, summary_of
from tests.mpi.toy import Settings, make_config

pytestmark = pytest.mark.mpi

# All features of an update at once: clipping, a schedule by weight, decay, a moving average.
UPDATE = {
    "kind": "adamw",
    "weight_decay": 0.01,
    "clip_norm": 0.5,
    "average_decay": 0.9,
    "schedule": {"kind": "inverse_square_root", "unit": "weight", "warmup": 100},
}


def config(folder: pathlib.Path, kind: str, **strategy: object) -> dict[str, object]:
    return make_config(folder, strategy={"kind": kind, **strategy}, optimizer=UPDATE, validation={"every": 10})


@pytest.mark.parametrize(("pending", "wanted"), [("apply", 1), pytest.param("drop", "workers", marks=pytest.mark.slow)])
def test_one_worker_with_one_arrival_is_the_single_process_to_the_last_bit(
    tmp_path: pathlib.Path, pending: str, wanted: int | str
) -> None:
    """No arrival is ever pending, so nothing is provisional."""
    run_toy(1, Settings(config(tmp_path / "single", "single"))).check()
    asynchronous = config(tmp_path / "async", "async", arrivals_per_update=wanted, pending=pending, provisional=True)
    run_toy(2, Settings(asynchronous)).check()
    assert len(losses_of(tmp_path / "single")) == 30
    assert losses_of(tmp_path / "async") == losses_of(tmp_path / "single")
    assert checkpoint_checksum(tmp_path / "async") == checkpoint_checksum(tmp_path / "single")


def test_lock_step_equals_horovod_and_ddp_over_fifty_updates(tmp_path: pathlib.Path) -> None:
    def settings(name: str, kind: str, **strategy: object) -> Settings:
        return Settings(config(tmp_path / name, kind, **strategy), num_batches=150)

    run_toy(3, settings("horovod", "horovod"), settings("ddp", "ddp")).check()
    run_toy(4, settings("lockstep", "async", lockstep=True), settings("warm", "async", synchronous_versions=50)).check()
    expected = losses_of(tmp_path / "horovod")
    assert len(expected) == 50
    for name in ("ddp", "lockstep", "warm"):
        assert losses_of(tmp_path / name) == pytest.approx(expected, rel=2e-5), name
        assert summary_of(tmp_path / name)["mean_staleness"] == 0
        measured = [m["scores"]["loss"] for m in summary_of(tmp_path / name)["measurements"]]
        assert measured == pytest.approx(
            [m["scores"]["loss"] for m in summary_of(tmp_path / "horovod")["measurements"]], rel=2e-5
        )


def test_weights_need_not_be_whole(tmp_path: pathlib.Path) -> None:
    optimizer = {**UPDATE, "schedule": {"kind": "constant"}}

    def settings(name: str, point_weight: float, **strategy: object) -> Settings:
        configuration = make_config(tmp_path / name, strategy=strategy, optimizer=optimizer, validation={"every": 10})
        return Settings(configuration, point_weight=point_weight)

    lockstep = {"kind": "async", "lockstep": True}
    run_toy(3, settings("whole", 1.0, **lockstep), settings("half", 0.5, **lockstep)).check()
    run_toy(2, settings("horovod", 0.5, kind="horovod")).check()
    assert losses_of(tmp_path / "half") == losses_of(tmp_path / "whole")
    assert checkpoint_checksum(tmp_path / "half") == checkpoint_checksum(tmp_path / "whole")
    assert losses_of(tmp_path / "horovod") == pytest.approx(losses_of(tmp_path / "whole"), rel=2e-5)
    for name in ("half", "horovod"):
        weights = sorted({arrival["weight"] for arrival in events_of(tmp_path / name, "arrival")})
        assert repr(weights) == "[1.5, 2, 2.5, 3, 3.5]"
    assert summary_of(tmp_path / "half")["weight_unit"] == "points"


def test_synchronous_steps_do_not_mix_epochs_and_use_every_batch_once(tmp_path: pathlib.Path) -> None:
    # Epochs of 30 batches on 4 workers: the last group of each epoch has 2 batches, so two ranks get none.
    runs = [Settings(config(tmp_path / kind, kind), num_batches=60) for kind in ("horovod", "ddp")]
    run_toy(4, *runs).check()
    for kind in ("horovod", "ddp"):
        groups: dict[int, list[int]] = {}
        for arrival in events_of(tmp_path / kind, "arrival"):
            groups.setdefault(arrival["version"], []).append(arrival["batch"])
        sizes = [len(groups[version]) for version in sorted(groups)]
        assert sizes == [4, 4, 4, 4, 4, 4, 4, 2] * 2
        assert sorted(batch for group in groups.values() for batch in group) == list(range(60))
    assert losses_of(tmp_path / "horovod") == pytest.approx(losses_of(tmp_path / "ddp"), rel=2e-5)


def test_a_lock_step_run_repeats_to_the_last_bit_whichever_worker_claims_a_batch(tmp_path: pathlib.Path) -> None:
    runs = [Settings(config(tmp_path / name, "async", lockstep=True), uneven=seed) for name, seed in (("a", 1), ("b", 2))]
    run_toy(4, *runs).check()
    assert checkpoint_checksum(tmp_path / "a") == checkpoint_checksum(tmp_path / "b")


def test_colocated_ranks_all_train_and_conserve_arrivals(tmp_path: pathlib.Path) -> None:
    settings = Settings(config(tmp_path / "run", "async", placement="colocated", arrivals_per_update=2))
    run_toy(3, settings).check()
    arrivals = events_of(tmp_path / "run", "arrival")
    assert sorted(a["batch"] for a in arrivals) == list(range(30))
    assert {a["worker"] for a in arrivals} <= {0, 1, 2}
    assert summary_of(tmp_path / "run")["num_workers"] == 3
