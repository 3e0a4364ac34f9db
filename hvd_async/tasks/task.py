"""The protocol of a task: any model and any data that training can use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch

from hvd_async.tasks.evaluation import Evaluation

Batch: TypeAlias = Any
"""A minibatch, of a type of the task's choice; only the task's own `loss` looks into it."""


class Task(Protocol):
    """A model, its data and its loss. Every method but `evaluate` is a function of its arguments alone, equal on every
    rank."""

    def build_model(self) -> torch.nn.Module:
        """Return a new model on the CPU, drawn from the run's seed."""

    def fingerprint(self) -> str:
        """Return a hash of the training data and their preparation: under one configuration, equal hashes mean equal
        batches."""

    def describe_data(self) -> list[str]:
        """Return lines that a user should read before training: what was left out, padding."""

    def num_batches(self) -> int | None:
        """Return the number of batches of the whole run; None if updates or seconds bound the run."""

    def batch(self, index: int, device: torch.device | str) -> Batch:
        """Return batch number `index`, on `device`."""

    def epoch_of(self, index: int) -> int:
        """Return the epoch to which batch number `index` belongs."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        """Return the loss summed over the batch's target tokens (a scalar, nats), and the number of these tokens."""

    def evaluate(self, model: torch.nn.Module, shard: int = 0, num_shards: int = 1) -> Evaluation:
        """Return the statistics of one shard of the validation data."""

    def export(
        self, folder: Path, named_tensors: Mapping[str, torch.Tensor], version: int, measured: Mapping[str, float | None]
    ) -> None:
        """Write a model folder, whole or not at all, including the values in `measured`."""
