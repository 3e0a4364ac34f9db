"""A store on a GPU, emulated by ordinary memory: which rank copies which parts, in which order, and which ranks fall
back, on real ranks.

The behaviour of CUDA itself is tested in test_gpu.py.
"""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from tests.mpi.runs import checkpoint_checksum, events_of, losses_of, run_toy, summary_of
from tests.mpi.test_strategies import UPDATE
from tests.mpi.toy import Settings, make_config, settings_text
from tests.ranks import Completed, run_ranks

pytestmark = pytest.mark.mpi

NUM_BATCHES = 41


def config(
    folder: pathlib.Path, device: str = "cuda", training: dict[str, Any] | None = None, **sections: Any
) -> dict[str, Any]:
    push = sections.pop("push", {})
    placement = sections.pop("placement", "dedicated")
    return make_config(
        folder,
        strategy={"kind": "async", "placement": placement, **sections},
        store={"device": device},
        push=push,
        training={"device": "cuda", "allow_sharing": True, **(training or {})},
        optimizer=UPDATE,
        validation={"every": 10},
    )


def run_device_toy(num_ranks: int, *settings: Settings, gpus: str = "gpu0", refused: str = "") -> Completed:
    return run_ranks(num_ranks, "tests.mpi.device_toy", settings_text(settings), gpus, refused, timeout=120.0)


@pytest.mark.parametrize(
    "refused", [pytest.param("", marks=pytest.mark.slow), "2", pytest.param("1,2,3", marks=pytest.mark.slow)]
)
def test_lock_step_gives_the_parameters_of_a_store_on_the_cpu(tmp_path: pathlib.Path, refused: str) -> None:
    on_cpu = config(tmp_path / "cpu", "cpu", {"device": "cpu"}, lockstep=True)
    run_toy(4, Settings(on_cpu, num_batches=60)).check()
    done = run_device_toy(4, Settings(config(tmp_path / "gpu", lockstep=True), num_batches=60), refused=refused).check()
    assert losses_of(tmp_path / "gpu") == losses_of(tmp_path / "cpu") and len(losses_of(tmp_path / "gpu")) == 20
    assert checkpoint_checksum(tmp_path / "gpu") == checkpoint_checksum(tmp_path / "cpu")
    # Every refusal is printed once and its handle released; the host's block is locked only if a rank uses it, and
    # unlocked in the end.
    numbers = [number for number in refused.split(",") if number]
    for rank in numbers:
        assert (
            f"hvd-async: rank {rank}: CUDA IPC is refused, so it goes through the host's memory: CUDA error" in done.stderr
        )
    counts = [done.stderr.count(f"{word}\n") for word in ("released", "unlocked")]
    assert counts == [len(numbers), int(bool(numbers))]


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"arrivals_per_update": 1},
    "overlap": {"arrivals_per_update": 2, "push": {"overlap": True, "dtype": "bfloat16"}},
    "compensated": {"arrivals_per_update": 2, "staleness_policy": "delay_compensation"},
    "few": {"arrivals_per_update": 2, "push": {"keep": 0.1, "error_feedback": True}},
    "node-sum": {"push": {"node_sum": True}},
    "on-cpu": {"training": {"device": "cpu"}},
}


@pytest.mark.parametrize(("placement", "names"), [("dedicated", list(VARIANTS)), ("colocated", ["overlap", "on-cpu"])])
def test_every_batch_ends_in_exactly_one_place(tmp_path: pathlib.Path, placement: str, names: list[str]) -> None:
    runs = []
    for seed, name in enumerate(names):
        configuration = config(tmp_path / name, placement=placement, **VARIANTS[name])
        runs.append(Settings(configuration, num_batches=NUM_BATCHES, uneven=seed))
    run_device_toy(3, *runs, refused="2").check()
    for name in names:
        check_conservation(tmp_path / name)


def check_conservation(folder: pathlib.Path) -> None:
    arrivals, summary = events_of(folder, "arrival"), summary_of(folder)
    assert sorted(arrival["batch"] for arrival in arrivals) == list(range(NUM_BATCHES)), folder.name
    assert sum(update["arrivals"] for update in events_of(folder, "update")) == NUM_BATCHES
    assert summary["refused"] == {} and summary["pending"] == 0
    losses = losses_of(folder)
    third = len(losses) // 3  # of single batches, whose losses vary
    assert sum(losses[-third:]) < sum(losses[:third]), folder.name


@pytest.mark.slow
def test_a_stopped_run_resumes(tmp_path: pathlib.Path) -> None:
    whole, halves = config(tmp_path / "whole", lockstep=True), config(tmp_path / "halves", lockstep=True)
    run_device_toy(3, Settings(whole, num_batches=40)).check()
    run_device_toy(3, Settings(halves, num_batches=20)).check()
    run_device_toy(3, Settings(halves, num_batches=40, resume=True)).check()
    assert checkpoint_checksum(tmp_path / "halves") == checkpoint_checksum(tmp_path / "whole")
