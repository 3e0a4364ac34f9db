"""The synchronous strategies in virtual time: all workers compute a batch, sum the gradients, and make the same update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hvd_async.emulation.step_times import StepTimes
from hvd_async.simulation.clock import Clock
from hvd_async.simulation.costs import Costs
from hvd_async.simulation.shared_state import TimeTotals


class SimulatedReplica(Protocol):
    """The interface of the store of a synchronous cluster, fed with groups of batches: one per worker, fewer at an epoch's
    end."""

    def weight(self, batch: int) -> float:
        """Return the weight of `batch`; called only if the length of steps depends on them."""

    def group(self) -> Sequence[int]:
        """Return the next batches; empty at the end."""

    def take_in(self, group: Sequence[int], seconds: Sequence[float], waited: Sequence[float]) -> None:
        """Sum the gradients of `group`. By worker, `seconds`: of the steps; `waited`: in the previous allreduce."""

    def update(self) -> None:
        """Make the next version from the sum."""


class Synchronous:
    """Workers that wait for each other in every step, for one run.

    Attributes:
        totals: seconds of the run by activity.
    """

    def __init__(self, costs: Costs, times: StepTimes, store: SimulatedReplica, clock: Clock) -> None:
        """Borrow all arguments."""
        self.totals = TimeTotals()
        self._costs = costs
        self._times = times
        self._store = store
        self._clock = clock

    def run(self) -> None:
        """Run from the first step to the last update."""
        costs, clock, totals = self._costs, self._clock, self.totals
        waited, step = [0.0] * costs.num_workers, 0
        while group := self._store.group():
            # Surplus ranks compute a batch too, whose gradient is not used.
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
        weight = self._store.weight(batch) if self._times.asks_for_weight else 0
        return self._times.seconds(worker, step, weight)
