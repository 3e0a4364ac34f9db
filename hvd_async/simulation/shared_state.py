"""State shared by all parts of a simulated cluster: configuration, costs, clock, store, and totals of time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hvd_async.config import RunConfig
from hvd_async.emulation.step_times import StepTimes
from hvd_async.simulation.clock import Clock
from hvd_async.simulation.costs import Costs
from hvd_async.simulation.simulated_store import SimulatedStore
from hvd_async.store.schedule import is_synchronous
from hvd_async.store.staleness import needs_versions_under_way


@dataclass
class TimeTotals:
    """Seconds of all workers together, and of the store."""

    present: float = 0.0
    """Time until each worker left."""
    computing: float = 0.0
    pushing: float = 0.0
    pulling: float = 0.0
    arrivals: float = 0.0
    updates: float = 0.0

    @property
    def waiting(self) -> float:
        """Time spent waiting for the store or for others; with overlap, less the time of computing meanwhile."""
        return max(0.0, self.present - self.computing - self.pushing - self.pulling)


class Announced:
    """Counts of the base versions of gradients under way, as workers announce them if the store needs that."""

    def __init__(self) -> None:
        """Start with no gradients under way."""
        self._counts: Counter[int] = Counter()
        self._oldest = 0

    def add(self, version: int) -> None:
        """Count one gradient more. `version` is never older than the oldest version that any worker still has."""
        self._counts[version] += 1

    def drop(self, version: int) -> None:
        """Count one gradient less."""
        self._counts[version] -= 1
        if not self._counts[version]:
            del self._counts[version]

    @property
    def oldest(self) -> int | None:
        """Oldest base version under way, or None."""
        if not self._counts:
            return None
        while self._oldest not in self._counts:
            self._oldest += 1
        return self._oldest


@dataclass(frozen=True)
class Timing:
    """Costs, step times and clock of a simulated run."""

    costs: Costs
    times: StepTimes
    clock: Clock


class World:
    """One simulated run, with the properties of its configuration that every event needs, computed once."""

    def __init__(self, config: RunConfig, timing: Timing, store: SimulatedStore) -> None:
        """Borrow all arguments."""
        self.config = config
        self.costs, self.times, self.clock = timing.costs, timing.times, timing.clock
        self.store = store
        self.totals = TimeTotals()
        strategy = self.config.strategy
        self.may_be_synchronous = strategy.may_be_synchronous
        self.waits_for_stragglers = strategy.waits_for_stragglers
        self.has_provisional = strategy.has_provisional
        self.has_micro_batches = strategy.num_micro_batches > 1
        self.is_overlapped = self.config.push.overlap
        self.aggregates_nodes = self.config.push.node_sum
        self.announced = Announced() if needs_versions_under_way(strategy) else None

    def is_synchronous(self, version: int) -> bool:
        """Whether the update on top of `version` is made in lock-step."""
        return self.may_be_synchronous and is_synchronous(self.config.strategy, version)

    @property
    def oldest_under_way(self) -> int | None:
        """Oldest base version under way, or None if there is none or workers do not announce them."""
        return None if self.announced is None else self.announced.oldest


def make_clock(config: RunConfig, times: StepTimes, num_workers: int) -> Clock:
    """Return a clock for the run's seed, with buckets of a few dozen ends of steps."""
    return Clock(config.seed, 32 * max(1e-6, times.typical_seconds) / num_workers)
