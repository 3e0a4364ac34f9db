"""What reaches the store and what comes of it: arrivals, why one is refused, and the updates that the others are in."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True)
class Arrival:
    """A gradient that reached the store: the gradient of the *summed* loss over `tokens` target tokens of `batch`.

    `loss` is that sum in nats, `step_seconds` the worker's time from claim to push. `push_seconds`, `wait_seconds` and
    `pull_seconds` are what the exchange before this step took of it: writing, waiting for the store or for others, reading.
    `provisional`: the parameters were those that an update with the first so many arrivals on top of `base_version` would have
    made; 0: those of `base_version`. See `ParameterStore.make_provisional`.
    """

    worker: int
    batch: int
    base_version: int
    tokens: int
    loss: float
    step_seconds: float = 0.0
    push_seconds: float = 0.0
    wait_seconds: float = 0.0
    pull_seconds: float = 0.0
    provisional: int = 0
    sent_bytes: int = 0
    """What was pushed of the gradient: 0 where nothing was, as in synchronous strategies."""
    push: int = -1
    """The first batch of those whose gradients were pushed as one sum: its own where a worker pushes for itself."""


class Refusal(str, enum.Enum):
    """Why an arrival is in no update."""

    NOT_FINITE = "not_finite"
    TOO_STALE = "too_stale"
    AFTER_THE_END = "after_the_end"
    DROPPED_PENDING = "dropped_pending"
    SUM_NOT_FINITE = "sum_not_finite"


@dataclass(frozen=True)
class Update:
    """One optimizer step: the version it made and the arrivals that are in it, in the order of their summation."""

    version: int
    arrivals: tuple[Arrival, ...]
    learning_rate: float
    gradient_norm: float

    @property
    def tokens(self) -> int:
        """Target tokens of all arrivals."""
        return sum(arrival.tokens for arrival in self.arrivals)

    @property
    def loss(self) -> float:
        """Mean training loss of the arrivals, in nats per target token."""
        return sum(arrival.loss for arrival in self.arrivals) / max(1, self.tokens)

    def staleness(self, arrival: Arrival) -> int:
        """Updates made between the version `arrival` was computed on and this one: 0 if it was fresh."""
        return self.version - 1 - arrival.base_version
