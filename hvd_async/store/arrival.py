"""Arrivals at the store and their outcomes: updates, and reasons to refuse an arrival."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hvd_async.system.json_text import plain_number


@dataclass(frozen=True)
class Arrival:
    """A gradient that reached the store: the gradient of the *summed* loss of `batch`.

    `weight` is what the loss is summed over (see `Task`), an int if it is whole. `loss` is the summed loss, `step_seconds`
    the worker's time from claim to push, without pulls between micro-batches. `push_seconds`, `wait_seconds` and
    `pull_seconds` are what the push and pull before this step took: writing, waiting for the store or for others, reading,
    which includes the pulls between its micro-batches. `provisional` is
    the number k of pending arrivals in the parameters on which the gradient was computed (see
    `ParameterStore.make_provisional`); 0: the parameters of `base_version`. If the batch was divided into micro-batches, both
    are those of the first, and `later_bases` those of the others.
    """

    worker: int
    batch: int
    base_version: int
    weight: float
    loss: float
    step_seconds: float = 0.0
    push_seconds: float = 0.0
    wait_seconds: float = 0.0
    pull_seconds: float = 0.0
    provisional: int = 0
    sent_bytes: int = 0
    """Bytes pushed for the gradient; 0 in synchronous strategies, which push nothing."""
    push: int = -1
    """First batch of the sum in which the gradient was pushed; `batch` if the worker pushes for itself."""
    later_bases: tuple[tuple[int, int], ...] = ()
    """Version, and number of pending arrivals, of the parameters of each micro-batch after the first."""

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Arrival:
        """Return the arrival whose `asdict` was saved as JSON in `found`, perhaps with more. Raises `KeyError` for a missing
        field, and `TypeError` or `ValueError` for damaged later bases."""
        values = {each.name: found[each.name] for each in fields(cls) if each.name != "later_bases"}
        later = tuple((int(version), int(provisional)) for version, provisional in found.get("later_bases", ()))
        return cls(**values, later_bases=later)

    @property
    def bases(self) -> tuple[tuple[int, int], ...]:
        """Version, and number of pending arrivals, of the parameters of each micro-batch."""
        return ((self.base_version, self.provisional), *self.later_bases)


def total_weight(arrivals: Sequence[Arrival], before: float = 0) -> float:
    """Return `before` + the weights of `arrivals`, an int if the sum is whole."""
    return plain_number(before + sum(arrival.weight for arrival in arrivals))


class Refusal(str, enum.Enum):
    """Why an arrival is in no update."""

    NOT_FINITE = "not_finite"
    TOO_STALE = "too_stale"
    AFTER_THE_END = "after_the_end"
    DROPPED_PENDING = "dropped_pending"
    SUM_NOT_FINITE = "sum_not_finite"


@dataclass(frozen=True)
class Update:
    """One optimizer step: the version that it made, and its arrivals in the order of their summation."""

    version: int
    arrivals: tuple[Arrival, ...]
    learning_rate: float
    gradient_norm: float

    @property
    def weight(self) -> float:
        """Total weight of the arrivals."""
        return total_weight(self.arrivals)

    @property
    def loss(self) -> float:
        """Mean training loss of the arrivals: the sum of their losses / their weight."""
        return sum(arrival.loss for arrival in self.arrivals) / (self.weight or 1.0)

    def staleness(self, arrival: Arrival) -> int:
        """Return the number of updates between the base version of `arrival` and this update: 0 if it was fresh."""
        return self.version - 1 - arrival.base_version

    def part_staleness(self, arrival: Arrival) -> list[int]:
        """Return the number of updates between the base version of each micro-batch of `arrival` and this update."""
        return [self.version - 1 - base for base, _ in arrival.bases]
