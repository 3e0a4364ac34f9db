"""The synchronous strategies in virtual time: everybody computes a batch, the sum takes its time, everybody updates alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hvd_async.emulation.step_times import StepTimes
from hvd_async.simulation.clock import Clock
from hvd_async.simulation.costs import Costs
from hvd_async.simulation.world import TimeTotals


class SimulatedReplica(Protocol):
    """What becomes of a group of batches, one for each worker, or fewer at the end of an epoch."""

    def tokens(self, batch: int) -> int:
        """Target tokens of `batch`; asked for where the length of steps depends on them."""

    def group(self) -> range:
        """The next batches; empty at the end."""

    def take_in(self, group: range, seconds: Sequence[float], waited: Sequence[float]) -> None:
        """Sum the gradients of `group`. `seconds`: of the steps; `waited`: in the exchange before, by worker."""

    def update(self) -> None:
        """Make the next version of what was taken in."""


class Synchronous:
    """Workers that wait for each other in every step. Lives for one run.

    Attributes:
        totals: where the time went.
    """

    def __init__(self, costs: Costs, times: StepTimes, store: SimulatedReplica, clock: Clock) -> None:
        """All are the caller's."""
        self.totals = TimeTotals()
        self._costs = costs
        self._times = times
        self._store = store
        self._clock = clock

    def run(self) -> None:
        """From the first step to the last update."""
        costs, clock, totals = self._costs, self._clock, self.totals
        waited, step = [0.0] * costs.num_workers, 0
        while group := self._store.group():
            # Ranks that are left over compute along with the others for nothing.
            batches = [*group, *[group[0]] * (costs.num_workers - len(group))]
            seconds = [self._seconds(worker, step, batch) for worker, batch in enumerate(batches)]
            slowest = max(seconds)
            clock.now += slowest + costs.allreduce_seconds
            self._store.take_in(group, seconds, waited)
            clock.now += costs.update_seconds
            self._store.update()
            waited = [slowest - own + costs.allreduce_seconds for own in seconds]
            totals.present = costs.num_workers * clock.now
            totals.computing += sum(seconds)
            totals.pushing += costs.num_workers * costs.allreduce_seconds
            totals.updates += costs.update_seconds
            step += 1

    def _seconds(self, worker: int, step: int, batch: int) -> float:
        tokens = self._store.tokens(batch) if self._times.asks_for_tokens else 0
        return self._times.seconds(worker, step, tokens)
