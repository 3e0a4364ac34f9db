"""Simulations whose gradients and updates are computed on a GPU."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from hvd_async.replay.replay import ReplayOptions, replay
from tests.mpi.runs import events_of, losses_of
from tests.mpi.toy import Settings, ToyTask
from tests.simulation.simulated import UNEVEN, run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

UPDATE = {"kind": "adamw", "weight_decay": 0.01, "clip_norm": 0.5, "average_decay": 0.9}
KINDS: dict[str, dict[str, Any]] = {
    "provisional": {"strategy": {"kind": "async"}},
    "rounded pushes": {"strategy": {"kind": "async"}, "push": {"dtype": "bfloat16"}},
    "few elements": {"strategy": {"kind": "async"}, "push": {"keep": 0.2, "error_feedback": True}},
    "node sums": {"strategy": {"kind": "async"}, "push": {"node_sum": True}, "simulation": {"workers_per_node": 2}},
    "compensated": {"strategy": {"kind": "async", "provisional": False, "delay_compensation": 0.04}},
    "synchronous": {"strategy": {"kind": "horovod"}},
    "late": {"strategy": {"kind": "horovod", "delay": 2, "delay_pattern": "turns"}},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_gpu_gives_the_run_of_the_cpu_but_for_rounding(tmp_path: pathlib.Path, kind: str) -> None:
    for device in ("cpu", "cuda"):
        run(tmp_path / device, 60, dropout=0.0, device=device, optimizer=UPDATE, emulation=UNEVEN, **KINDS[kind])
    assert losses_of(tmp_path / "cuda") == pytest.approx(losses_of(tmp_path / "cpu"), rel=1e-3)
    worker_and_batch = [
        [(e["worker"], e["batch"]) for e in events_of(tmp_path / each, "arrival")] for each in ("cpu", "cuda")
    ]
    assert worker_and_batch[0] == worker_and_batch[1] and len(worker_and_batch[0]) == 60
    (start,) = events_of(tmp_path / "cuda", "start")
    assert start["ranks"][0]["device"] == "cuda" and start["ranks"][0]["store_device"] == "cuda"


def test_a_simulation_on_a_gpu_is_computed_again_there(tmp_path: pathlib.Path) -> None:
    run(tmp_path / "run", 40, device="cuda", optimizer=UPDATE, emulation=UNEVEN, strategy={"kind": "async"})
    task = ToyTask(Settings({}, num_batches=40, dropout=0.2), 0)
    assert replay(tmp_path / "run", lambda _: task, ReplayOptions(trusts_task=True)).arrivals == 40
