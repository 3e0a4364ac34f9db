"""What is trained: the face of a task, behind which any model and any data may stand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch

from hvd_async.tasks.evaluation import Evaluation

Batch: TypeAlias = Any
"""A minibatch: of the type that the task makes, and into which its `loss` alone looks."""


class Task(Protocol):
    """What is trained. All but `evaluate` is a function of its arguments alone, the same on every rank."""

    def build_model(self) -> torch.nn.Module:
        """A new model on the CPU, drawn from the run's seed."""

    def fingerprint(self) -> str:
        """Of what is trained on and how it is prepared: equal ones mean equal batches, under the same configuration."""

    def describe_data(self) -> list[str]:
        """What a person should know of the data before training: what was left out, padding."""

    def num_batches(self) -> int | None:
        """Batches of the whole run; None where updates or seconds bound it."""

    def batch(self, index: int, device: torch.device | str) -> Batch:
        """Batch number `index`, on `device`."""

    def epoch_of(self, index: int) -> int:
        """The epoch to which batch number `index` belongs."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        """The loss summed over the batch's target tokens (a scalar, nats), and their number."""

    def evaluate(self, model: torch.nn.Module, shard: int = 0, num_shards: int = 1) -> Evaluation:
        """Statistics of one shard of the validation data."""

    def export(
        self, folder: Path, named_tensors: Mapping[str, torch.Tensor], version: int, measured: Mapping[str, float | None]
    ) -> None:
        """Write a model folder, whole or not at all; `measured` goes with it, by name."""
