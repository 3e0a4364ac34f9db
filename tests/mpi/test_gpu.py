"""Workers and stores that share one GPU: by pinned memory if the store is on the CPU, otherwise by CUDA IPC."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from tests.mpi.runs import events_of, losses_of, run_toy, summary_of
from tests.mpi.toy import Settings, make_config, settings_text
from tests.ranks import Completed, run_ranks

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_lock_step_on_a_gpu_gives_the_losses_of_the_cpu(tmp_path: pathlib.Path) -> None:
    runs = []
    for device in ("cpu", "cuda"):
        training = {"device": device, "allow_sharing": True}
        configuration = make_config(tmp_path / device, strategy={"kind": "async", "lockstep": True}, training=training)
        runs.append(Settings(configuration, num_batches=60, dropout=0.0))
    run_toy(3, *runs).check()
    assert len(losses_of(tmp_path / "cpu")) == 30
    assert losses_of(tmp_path / "cuda") == pytest.approx(losses_of(tmp_path / "cpu"), rel=1e-3)


@pytest.mark.parametrize("kind", ["horovod", "ddp", "async"])
def test_every_strategy_trains_on_a_gpu(tmp_path: pathlib.Path, kind: str) -> None:
    training = {"device": "cuda", "allow_sharing": True}
    num_ranks = 2 if kind == "async" else 1  # NCCL refuses two ranks on one device
    configuration = make_config(tmp_path / "run", strategy={"kind": kind}, training=training, validation={"every": 5})
    run_toy(num_ranks, Settings(configuration)).check()
    assert losses_of(tmp_path / "run")[-1] < losses_of(tmp_path / "run")[0]


# --- The store on the GPU ---------------------------------------------------------------------------------------------


def on_gpu(folder: pathlib.Path, workers: str = "cuda", placement: str = "dedicated", **sections: Any) -> dict[str, Any]:
    """Return a configuration with every feature of the update, for a store on the GPU, with workers on `workers`."""
    push = sections.pop("push", {})
    update = {"kind": "adamw", "weight_decay": 0.01, "clip_norm": 0.5, "average_decay": 0.9}
    return make_config(
        folder,
        strategy={"kind": "async", "placement": placement, **sections},
        store={"device": "cuda"},
        push=push,
        training={"device": workers, "allow_sharing": True},
        optimizer=update,
        validation={"every": 10},
    )


def run_refused(num_ranks: int, settings: Settings, refused: str) -> Completed:
    """Run the toy on the GPU, with CUDA IPC refused to the ranks `refused`."""
    return run_ranks(num_ranks, "tests.mpi.device_toy", settings_text([settings]), "", refused, timeout=120.0)


@pytest.mark.parametrize(("workers", "placement"), [("cuda", "dedicated"), ("cpu", "dedicated"), ("cuda", "colocated")])
def test_lock_step_gives_the_losses_of_a_store_on_the_cpu(tmp_path: pathlib.Path, workers: str, placement: str) -> None:
    expected = on_gpu(tmp_path / "cpu", "cpu", placement, lockstep=True)
    expected["store"] = {"device": "cpu"}
    run_toy(3, Settings(expected, num_batches=60, dropout=0.0)).check()
    done = run_toy(
        3, Settings(on_gpu(tmp_path / "gpu", workers, placement, lockstep=True), num_batches=60, dropout=0.0)
    ).check()
    assert len(losses_of(tmp_path / "gpu")) == len(losses_of(tmp_path / "cpu")) > 0
    assert losses_of(tmp_path / "gpu") == pytest.approx(losses_of(tmp_path / "cpu"), rel=1e-3)
    assert ("CUDA IPC" in done.stdout) == (workers == "cuda")
    assert "is refused" not in done.stderr, "CUDA IPC does not work here: only its fallback was tested"
    assert "terminated before all shared CUDA tensors released" not in done.stderr


@pytest.mark.parametrize("refused", ["1", "1,2"])
def test_ranks_to_which_cuda_ipc_is_refused_use_the_hosts_memory(tmp_path: pathlib.Path, refused: str) -> None:
    both = [on_gpu(tmp_path / name, lockstep=True) for name in ("direct", "refused")]
    run_toy(3, Settings(both[0], dropout=0.0)).check()
    done = run_refused(3, Settings(both[1], dropout=0.0), refused).check()
    assert done.stderr.count("CUDA IPC is refused") == len(refused.split(","))
    assert "terminated before all shared CUDA tensors released" not in done.stderr
    assert losses_of(tmp_path / "refused") == pytest.approx(losses_of(tmp_path / "direct"), rel=1e-5)


@pytest.mark.parametrize("placement", ["dedicated", "colocated"])
def test_every_batch_ends_in_exactly_one_place(tmp_path: pathlib.Path, placement: str) -> None:
    variants: dict[str, dict[str, Any]] = {
        "plain": {"arrivals_per_update": 1},
        "overlap": {"arrivals_per_update": 2, "push": {"overlap": True, "dtype": "bfloat16"}},
        "compensated": {"arrivals_per_update": 2, "staleness_policy": "delay_compensation"},
        "few": {"arrivals_per_update": 2, "push": {"keep": 0.1, "error_feedback": True}},
        "node-sum": {"push": {"node_sum": True}},
        "on-cpu": {"arrivals_per_update": 2, "workers": "cpu"},
    }
    configurations = {name: on_gpu(tmp_path / name, placement=placement, **variant) for name, variant in variants.items()}
    runs = [Settings(each, num_batches=41, uneven=seed) for seed, each in enumerate(configurations.values())]
    run_toy(3, *runs, timeout=280).check()
    for name in variants:
        arrivals, summary = events_of(tmp_path / name, "arrival"), summary_of(tmp_path / name)
        assert sorted(arrival["batch"] for arrival in arrivals) == list(range(41)), name
        assert summary["refused"] == {} and summary["pending"] == 0
        assert losses_of(tmp_path / name)[-1] < losses_of(tmp_path / name)[0], name


def test_a_stopped_run_resumes(tmp_path: pathlib.Path) -> None:
    whole, halves = (on_gpu(tmp_path / name, lockstep=True) for name in ("whole", "halves"))
    run_toy(3, Settings(whole, num_batches=40, dropout=0.0)).check()
    run_toy(3, Settings(halves, num_batches=20, dropout=0.0)).check()
    run_toy(3, Settings(halves, num_batches=40, dropout=0.0, resume=True)).check()
    assert losses_of(tmp_path / "halves") == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-4)
