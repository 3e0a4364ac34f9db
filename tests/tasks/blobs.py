"""A task as a user writes it: points around three centres, a network with BatchNorm, accuracy and perplexity."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from hvd_async.config import RunConfig
from hvd_async.tasks.dataset import DatasetTask
from hvd_async.tasks.metric import Metric

ACCURACY = Metric("accuracy", "accuracy", unit="%", digits=1, is_higher_better=True)
PERPLEXITY = Metric("perplexity", "perplexity", digits=2)


def blobs(size: int, seed: int) -> TensorDataset:
    """Return points near the corners of a triangle, each with the number of its corner."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (size,), generator=random)
    centres = torch.tensor([[0.0, 2.0], [-2.0, -1.0], [2.0, -1.0]])
    return TensorDataset(centres[labels] + torch.randn(size, 2, generator=random), labels)


def make_task(config: RunConfig, size: int = 200, batch_size: int = 16, buffers: str = "recalibrate") -> DatasetTask:
    """Return the task."""
    return DatasetTask(
        config,
        model=lambda: torch.nn.Sequential(
            torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(8, 3)
        ),
        train=blobs(size, 1),
        validation=blobs(90, 2),
        batch_size=batch_size,
        loss=lambda outputs, batch: F.cross_entropy(outputs, batch[1], reduction="sum"),
        measures={ACCURACY: lambda outputs, batch: (outputs.argmax(1) == batch[1]).sum()},
        derived={PERPLEXITY: lambda scores: math.exp(scores["loss"])},
        weight_unit="points",
        buffers=buffers,  # type: ignore[arg-type]
    )


NOT_A_FUNCTION = 3


def make_nothing(config: RunConfig) -> int:
    """Return what is no task."""
    return 3


def make_trouble(config: RunConfig) -> DatasetTask:
    """Fail."""
    raise OSError("no such\ndisk")
