"""The task of run.yaml: is a point on the one spiral or on the other? Put your own model and data in place of these."""

from __future__ import annotations

import math

import hvd_async as ha  # before torch
import torch
import torch.nn.functional as F
from hvd_async.config import RunConfig
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

ACCURACY = ha.Metric("accuracy", "accuracy", unit="%", digits=1, is_higher_better=True)


def make_model() -> nn.Module:
    """Return a new model on the CPU. The run's seed decides its parameters."""
    return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def make_data(num_points: int) -> TensorDataset:
    """Return points and their labels, [num_points, 2] and [num_points]; the same on every rank."""
    numbers = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (num_points,), generator=numbers)
    turns = torch.rand(num_points, generator=numbers)
    angle = 2 * math.pi * turns + math.pi * labels
    points = (0.2 + turns)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)  # [num_points, 2]
    return TensorDataset(points + 0.03 * torch.randn(num_points, 2, generator=numbers), labels)


def summed_loss(outputs: Tensor, batch: list[Tensor]) -> Tensor:
    """Return the loss of a batch: a sum over its points, not a mean, since batches count by their points."""
    return F.cross_entropy(outputs, batch[1], reduction="sum")


def num_right(outputs: Tensor, batch: list[Tensor]) -> Tensor:
    """Return how many points of a batch are classified right."""
    return (outputs.argmax(1) == batch[1]).sum()


def make_task(config: RunConfig, num_points: int = 4000, batch_size: int = 32) -> ha.DatasetTask:
    """Return the task. run.yaml names this function; the arguments after the first are `task.options` there."""
    data = make_data(num_points)
    num_train = num_points * 7 // 8
    return ha.DatasetTask(
        config,
        model=make_model,
        train=Subset(data, range(num_train)),
        validation=Subset(data, range(num_train, num_points)),
        batch_size=batch_size,
        loss=summed_loss,  # the model is called with the batch's first element; `forward=` changes this
        measures={ACCURACY: num_right},
        weight_unit="points",
    )
