"""Runs in virtual time without gradients: the speed of a cluster, and what limits it."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hvd_async.config import RunConfig
from hvd_async.emulation.step_times import StepTimes
from hvd_async.errors import ConfigError
from hvd_async.simulation.cluster import Cluster
from hvd_async.simulation.costs import Costs, costs, num_workers
from hvd_async.simulation.counting_store import BatchWeights, CountingStore
from hvd_async.simulation.shared_state import TimeTotals, Timing, World, make_clock
from hvd_async.simulation.synchronous_cluster import Synchronous

DEFAULT_SECONDS = 0.1
"""Length of a step if the configuration gives none."""
# A resource that is busy for this share of the time limits a run.
_SATURATED = 0.85
# The workers' own steps limit a run from this share of the time on.
_COMPUTING = 0.8


class TooFewArrivalsError(ConfigError):
    """Raised when a simulation makes too few versions for a rate."""


@dataclass(frozen=True)
class Size:
    """Size of a simulated run: parameters of the model, number of arrivals, weights of the batches."""

    parameters: int
    arrivals: int
    weights: BatchWeights


@dataclass(frozen=True)
class ClusterRates:
    """Rates of a simulated cluster, without the beginning, in which nothing arrives yet.

    `shares`: shares of the workers' time spent computing, pushing, waiting and pulling. `busy`: share of the time in which
    each resource was in use.
    """

    workers: int
    arrivals_per_second: float
    weight_per_second: float
    updates_per_second: float
    staleness: Counter[int]
    refused: int
    shares: dict[str, float]
    busy: dict[str, float]
    waits_for_others: bool
    """Whether workers wait for each other, or for the store alone."""

    @property
    def mean_staleness(self) -> float:
        """Mean staleness of applied arrivals."""
        return sum(value * count for value, count in self.staleness.items()) / max(1, self.staleness.total())

    @property
    def limit(self) -> str:
        """Name of the resource or activity that limits the speed."""
        name, share = max(self.busy.items(), key=lambda item: item[1])
        if share >= _SATURATED:
            return name
        if self.shares["computing"] >= _COMPUTING:
            return "computing"
        if self.shares["waiting"] > self.shares["pushing"] + self.shares["pulling"]:
            return "stragglers" if self.waits_for_others else "store"
        return "exchange"


def predict(config: RunConfig, size: Size) -> ClusterRates:
    """Predict the speed of `config`, with any strategy, on its simulated cluster.

    Raises the `ConfigError` of `StepTimes`, and `TooFewArrivalsError`, a `ConfigError` too, if there is too little for a
    rate.
    """
    workers = num_workers(config)
    times = StepTimes(config.emulation, config.seed, workers, default=DEFAULT_SECONDS)
    prices = costs(config, size.parameters)
    was_enabled = gc.isenabled()
    gc.disable()  # a million events make no reference cycles
    try:
        if config.strategy.is_async:
            return _predict_asynchronous(config, size, prices, times)
        return _predict_synchronous(config, size, prices, times)
    finally:
        if was_enabled:
            gc.enable()


class _Meter:
    """Meter of applied arrivals over time, from the end of the beginning to the end of the run."""

    def __init__(self, last: int, workers: int) -> None:
        """Start the meter. `last`: applied arrivals that end the run."""
        self.applied, self.now = 0, 0.0
        self._num_versions = 0
        self._began = (0, 0.0)
        self._first = min(max(last // 10, workers), last // 2)
        self._last = last

    def note(self, applied: int, now: float) -> bool:
        """Note the number of applied arrivals; return whether it ends the run."""
        if self.applied < self._first <= applied:
            self._began = (applied, now)
        self._num_versions += applied > self.applied
        self.applied, self.now = applied, now
        return applied >= self._last

    @property
    def rate(self) -> float:
        """Arrivals per second. Raises `TooFewArrivalsError`."""
        if self._num_versions < 2 or self.applied == self._began[0] or self.now == self._began[1]:
            raise _too_few(self._last, self._num_versions)
        return (self.applied - self._began[0]) / (self.now - self._began[1])


def _predict_asynchronous(config: RunConfig, size: Size, prices: Costs, times: StepTimes) -> ClusterRates:
    clock = make_clock(config, times, prices.num_workers)
    meter = _Meter(size.arrivals, prices.num_workers)

    def watch(applied: int) -> bool:
        return meter.note(applied, clock.now)

    strategy = config.strategy
    store = CountingStore(strategy, prices.num_workers, size.weights, watch=watch)
    cluster = Cluster(World(config, Timing(prices, times, clock), store), None)
    cluster.run()
    return ClusterRates(
        prices.num_workers,
        meter.rate,
        meter.rate * size.weights.mean,
        meter.rate * store.version / max(1, store.num_applied),
        store.staleness,
        store.num_refused,
        _shares(cluster.totals),
        _busy(cluster, clock.now),
        strategy.lockstep or config.push.node_sum or strategy.waits_for_stragglers,
    )


def _busy(cluster: Cluster, seconds: float) -> dict[str, float]:
    totals = cluster.totals
    nodes = {id(sender.node): sender.node for sender in cluster.senders}.values()
    of_nodes = max(max(node.sending.busy, node.receiving.busy) for node in nodes)
    # The store does arrivals and updates one after the other; its name is that of the longer part.
    name = "updates" if totals.updates > totals.arrivals else "arrivals"
    busy = {
        "store's link": max(link.busy for link in cluster.store_links),
        "nodes' links": of_nodes,
        name: totals.arrivals + totals.updates,
    }
    return {name: value / max(1e-12, seconds) for name, value in busy.items()}


class _CountingReplica:
    """`SimulatedReplica` that only counts arrivals."""

    def __init__(self, num_workers: int, size: Size) -> None:
        self._num_workers = num_workers
        self._size = size
        self._next = 0

    @property
    def version(self) -> int:
        return self._next // self._num_workers

    def weight(self, batch: int) -> float:
        return self._size.weights.of(batch)

    def group(self) -> Sequence[int]:
        if self._next >= self._size.arrivals:
            return range(0)
        return range(self._next, self._next + self._num_workers)

    def take_in(self, group: Sequence[int], seconds: Sequence[float], waited: Sequence[float]) -> None:
        self._next = group[-1] + 1

    def update(self) -> None: ...


def _predict_synchronous(config: RunConfig, size: Size, prices: Costs, times: StepTimes) -> ClusterRates:
    clock = make_clock(config, times, prices.num_workers)
    groups = _CountingReplica(prices.num_workers, size)
    cluster = Synchronous(prices, times, groups, clock)
    cluster.run()
    if groups.version < 2 or clock.now == 0.0:
        raise _too_few(size.arrivals, groups.version)
    arrivals = groups.version * prices.num_workers
    rate = arrivals / clock.now
    sums = groups.version * prices.allreduce_seconds
    return ClusterRates(
        prices.num_workers,
        rate,
        rate * size.weights.mean,
        rate / prices.num_workers,
        Counter({0: arrivals}),
        0,
        _shares(cluster.totals),
        {name: value / max(1e-12, clock.now) for name, value in (("sums", sums), ("updates", cluster.totals.updates))},
        waits_for_others=True,
    )


def _too_few(arrivals: int, versions: int) -> TooFewArrivalsError:
    made = "1 version" if versions == 1 else f"{versions} versions"
    return TooFewArrivalsError(f"--arrivals: got {arrivals}, which make {made}, too few for a rate; expected more")


def _shares(totals: TimeTotals) -> dict[str, float]:
    parts = {name: getattr(totals, name) for name in ("computing", "pushing", "waiting", "pulling")}
    return {name: seconds / max(1e-12, totals.present) for name, seconds in parts.items()}
