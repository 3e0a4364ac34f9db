"""Models of other kinds than the package's own: with frozen parameters, or with buffers that change in training."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch

from hvd_async.config import parse_config
from hvd_async.errors import ConfigError
from hvd_async.simulation.simulate import SimulateOptions, simulate
from hvd_async.tasks.gradient import check_buffers
from hvd_async.training.options import TrainOptions
from hvd_async.training.run import train
from tests.mpi.toy import CLASSES, FEATURES, Settings, ToyTask
from tests.runs.saved import load_latest_checkpoint

SETTINGS = Settings({}, num_batches=6)


class OtherTask(ToyTask):
    """The toy with layers of its own; `model` is the one that it builds."""

    def __init__(self, *layers: torch.nn.Module) -> None:
        super().__init__(SETTINGS, rank=0)
        self.model = torch.nn.Sequential(torch.nn.Linear(FEATURES, 8), *layers, torch.nn.Linear(8, CLASSES))

    def build_model(self) -> torch.nn.Module:
        return self.model


class Counting(torch.nn.Module):
    """A module with a buffer that may change in training; `is_saved`: whether the buffer is saved with the model."""

    def __init__(self, *, is_saved: bool, changes: bool) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()), persistent=is_saved)
        self.changes = changes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.changes and self.training:
            self.seen = self.seen + len(x)
        return x


def config(folder: pathlib.Path, **sections: Any) -> Any:
    training = {"epochs": 1, "tensorboard": False, "threads": 1}
    return parse_config({"output": str(folder), "task": {"data": {"folder": "x"}}, "training": training, **sections}, "test")


@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d(8), Counting(is_saved=True, changes=True)])
def test_buffers_that_change_are_refused_if_only_parameters_are_exchanged(
    tmp_path: pathlib.Path, layer: torch.nn.Module
) -> None:
    task, output = OtherTask(layer), tmp_path / "run"
    with pytest.raises(ConfigError, match=r"strategy\.kind: got async with a model whose buffers change in training \(1\."):
        simulate(config(output, strategy={"kind": "async"}), lambda _: task, SimulateOptions())
    assert not output.exists() and task.model.training


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.LayerNorm(8),
        torch.nn.BatchNorm1d(8, track_running_stats=False),
        Counting(is_saved=True, changes=False),
        Counting(is_saved=False, changes=True),
    ],
)
def test_other_buffers_are_accepted(layer: torch.nn.Module) -> None:
    task = OtherTask(layer)
    state = torch.random.get_rng_state()
    check_buffers(task, task.model)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_weight_decay_and_averages_leave_frozen_parameters_alone(tmp_path: pathlib.Path) -> None:
    task = OtherTask()
    first, last = task.model[0], task.model[1]
    first.requires_grad_(False)
    before = [parameter.clone() for parameter in (*first.parameters(), *last.parameters())]
    optimizer = {"kind": "adamw", "weight_decay": 0.5, "average_decay": 0.9, "learning_rate": 0.1}
    summary = train(config(tmp_path, optimizer=optimizer), lambda _: task, TrainOptions(), environ={})
    after = [*first.parameters(), *last.parameters()]
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [True, True, False, False]
    assert summary["parameters"] == sum(parameter.numel() for parameter in before)
    saved = load_latest_checkpoint(tmp_path / "checkpoints")
    assert saved is not None and saved.tensors["parameters"].numel() < 16 + sum(p.numel() for p in last.parameters()) + 16
