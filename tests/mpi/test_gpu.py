"""Workers on a GPU, which they share: gradients and parameters travel through pinned memory."""

from __future__ import annotations

import pathlib

import pytest
import torch

from tests.mpi.runs import losses_of, run_toy
from tests.mpi.toy import Settings, make_config

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
