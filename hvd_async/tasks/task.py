"""The protocol of a task: any model and any data that training can use."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch

from hvd_async.tasks.metric import Metric

Batch: TypeAlias = Any
"""A minibatch, of a type of the task's choice; only the task's own `loss` and `weight` look into it."""

PREPARING = "preparing the task, its text or other data, and its batches"
"""What a run does before its first line."""


class Task(Protocol):
    """A model, its data and its loss. Every method but `evaluate` is a function of its arguments alone, equal on every
    rank.

    The *weight* of a batch is what its loss is summed over, such as the number of its target tokens or images: finite, not
    negative, and not always whole. The mean loss of several batches is the sum of their losses / the sum of their weights.
    """

    @property
    def weight_unit(self) -> str:
        """The name of what weights count, for people: a plural that ends in `s`, such as `tokens` or `images`."""

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

    def weight(self, batch: Batch) -> float:
        """Return the weight of `batch`."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, float]:
        """Return the summed loss of `batch`, a scalar, and its weight."""

    def recomputed_buffers(self, model: torch.nn.Module) -> Collection[str]:
        """Return the names of the buffers of `model` that training changes, but the task computes from the parameters before it
        evaluates or exports, so that nothing depends on what they are meanwhile."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """The metrics of its scores, in the order in which people read them. One is named `loss`, and lower is better. None:
        nothing is evaluated."""

    @property
    def num_statistics(self) -> int:
        """Length of the vector that `evaluate` returns, at most `MAX_STATISTICS`."""

    def evaluate(self, model: torch.nn.Module, shard: int = 0, num_shards: int = 1) -> Sequence[float]:
        """Return the statistics of one shard of the validation data; those of all shards are summed element by element."""

    def scores(self, statistics: Sequence[float]) -> dict[str, float]:
        """Return the scores that `statistics` of all validation data make, by metric: `loss`, and others if measured."""

    def export(
        self, folder: Path, named_tensors: Mapping[str, torch.Tensor], version: int, scores: Mapping[str, float]
    ) -> None:
        """Write a model folder, whole or not at all, including the validation `scores` of the version, if there are any.

        May be called in a thread beside training, so it must not draw from the global random generators, nor change the
        model that trains.
        """


@runtime_checkable
class Divides(Protocol):
    """A task that can also divide its batches, for `strategy.micro_batches`."""

    def micro_batches(self, index: int, number: int, device: torch.device | str) -> Sequence[Batch]:
        """Return batch `index`, on `device`, as `number` batches, or as fewer if it has fewer examples. Each example is in one of
        them, so that their losses and weights sum to those of the batch."""


@runtime_checkable
class ReadsAhead(Protocol):
    """A task that also has processes which read the batches of a rank before it computes them."""

    @property
    def num_batches_ahead(self) -> int:
        """How many batches a rank is to claim ahead of time; 0: none."""

    def expect(self, indices: Sequence[int]) -> None:
        """Learn the batches that this rank will ask for next, in order. Does not wait."""

    def close(self) -> None:
        """End the processes; called when training ends."""


@runtime_checkable
class ShowsSamples(Protocol):
    """A task that also shows what a model makes of a few examples of the validation data."""

    def show_samples(self, model: torch.nn.Module) -> Sequence[Mapping[str, Any]]:
        """Return the examples, each as plain data by name, such as its text and what `model` makes of it. Draws nothing from the
        global random generators, and restores the mode of `model`."""
