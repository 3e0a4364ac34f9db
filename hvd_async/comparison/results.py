"""The figures of a comparison: the cost at which each variant reached the target in each environment, and how time was
spent."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hvd_async.comparison.collection import Collection, Entry, runs_of
from hvd_async.comparison.history import History, Shares, read_history
from hvd_async.comparison.ideal import Ideal, ideal
from hvd_async.comparison.runs import Run
from hvd_async.comparison.statistics import (
    Interval,
    Reached,
    known_ratio,
    mean_interval,
    reached,
    weight_efficiency,
)
from hvd_async.tasks.metric import LOSS, Metric

Key = TypeVar("Key", int, str)


@dataclass(frozen=True)
class Row:
    """Results of one variant in one environment. Intervals are over seeds; None if there is no run for them.

    Attributes:
        rate: the learning rate at which the variant is shown, if several were tried.
        is_at_the_edge: no higher, or no lower, rate was tried.
        missing_rates: rates of the suite that have no run.
        entries: what counts, one for each seed, whether the run exists or not.
        reached: for each run of `runs`, when it reached the target, or None.
        seconds_to, weight_to, updates_to: cost to the target, over the runs that reached it.
        speed_up: seconds of the baseline / own seconds to the target, seed by seed, where both reached it.
        weight_efficiency: weight of the baseline / own weight, seed by seed, to the lowest loss that both reached. Like
            `throughput` only of runs with one unit of weight.
        throughput: own weight per second / that of the baseline, seed by seed.
        final: score of the final model, over the runs that did not diverge, by metric.
        difference: own final score - that of the baseline, seed by seed, by metric; not of the loss.
        shares: how the workers' time was spent, over all runs. They and `ideal` are None if the length of a step does not
            tell computing from waiting.
        worker_shares: shares by worker.
        ideal: from the step times of its own runs.
        steps_per_second: the measured rate beside it.
    """

    environment: str
    variant: str
    rate: float | None
    is_at_the_edge: bool
    is_baseline: bool
    entries: tuple[Entry, ...]
    runs: tuple[Run, ...]
    reached: tuple[Reached | None, ...]
    seconds_to: Interval | None
    weight_to: Interval | None
    updates_to: Interval | None
    speed_up: Interval | None
    weight_efficiency: Interval | None
    throughput: Interval | None
    final: Mapping[str, Interval]
    difference: Mapping[str, Interval]
    weight_per_second: Interval | None
    steps_per_second: float | None
    mean_staleness: float | None
    micro_batch_staleness: float | None
    staleness: Mapping[int, int]
    refused: Mapping[str, int]
    num_diverged: int
    num_overrun: int
    num_lost: int
    num_missing: int
    num_steps: int
    shares: Shares | None
    worker_shares: Mapping[int, Shares]
    ideal: Ideal | None
    missing_rates: tuple[float, ...] = ()

    @property
    def num_reached(self) -> int:
        """Runs that reached the target."""
        return sum(each is not None for each in self.reached)

    @property
    def is_synchronous(self) -> bool:
        """Whether all workers wait for each other in each step, so that the synchronous ideal applies."""
        if not self.runs:
            return False
        strategy, arrivals = self.runs[0].config.strategy, self.runs[0].config.strategy.arrivals_per_update
        is_of_all = arrivals == "workers" or (isinstance(arrivals, int) and arrivals >= self.runs[0].num_workers)
        return not strategy.is_async or (strategy.lockstep and is_of_all)

    @property
    def share_of_ideal(self) -> float | None:
        """Measured steps per second / those of the ideal of its kind."""
        if self.ideal is None or self.steps_per_second is None:
            return None
        return self.steps_per_second / (self.ideal.synchronous if self.is_synchronous else self.ideal.asynchronous)


def results(collection: Collection) -> list[Row]:
    """Return a row for every variant in every environment. Reads the event logs. Raises `DataError` if one is damaged."""
    return [_row(collection, environment, variant) for environment, variant in collection.pairs()]


def _row(collection: Collection, environment: str, variant: str) -> Row:
    entries = collection.chosen(environment, variant)
    runs = runs_of(entries)
    target = collection.target
    whens = [None if target is None else reached(run, target) for run in runs]
    there = [when for when in whens if when is not None]
    pairs = _pairs(collection.chosen(environment, collection.baseline), entries)
    speed_ups, efficiencies, throughputs = [], [], []
    for base, own in pairs:
        if not all(run.seconds > 0.0 and run.weight > 0 for run in (base, own)):
            continue  # without an update there is no rate
        if own.weight_unit == base.weight_unit:
            throughputs.append(own.weight_per_second / base.weight_per_second)
            if base.finite_points and own.finite_points:
                efficiencies.append(weight_efficiency(base, own))
        first, second = (None if target is None else reached(run, target) for run in (base, own))
        if first is not None and second is not None and first.seconds and second.seconds:
            speed_ups.append(first.seconds / second.seconds)
    histories = [read_history(run) for run in runs if _tells_waiting(run)]
    every = [e for e in collection.entries if (e.environment, e.variant) == (environment, variant)]
    rates = sorted({e.rate for e in every if e.run is not None and e.rate is not None})
    return Row(
        environment=environment,
        variant=variant,
        rate=entries[0].rate if entries else None,
        is_at_the_edge=len(rates) > 1 and bool(entries) and entries[0].rate in (min(rates), max(rates)),
        missing_rates=tuple(rate for rate in collection.rates if rate not in rates),
        is_baseline=variant == collection.baseline,
        entries=tuple(entries),
        runs=tuple(runs),
        reached=tuple(whens),
        seconds_to=known_ratio([when.seconds for when in there if when.seconds > 0.0]),
        weight_to=known_ratio([when.weight for when in there if when.weight > 0]),
        updates_to=known_ratio([when.updates for when in there if when.updates > 0]),
        speed_up=known_ratio(speed_ups),
        weight_efficiency=known_ratio(efficiencies),
        throughput=known_ratio(throughputs),
        final=_final(collection.metrics, runs),
        difference=_differences(collection.metrics, pairs),
        weight_per_second=known_ratio([run.weight_per_second for run in runs if run.weight > 0 and run.seconds > 0.0]),
        steps_per_second=sum(run.steps_per_second for run in runs) / len(runs) if runs else None,
        mean_staleness=_weighted(runs, lambda run: run.mean_staleness),
        micro_batch_staleness=_over_micro_batches(runs),
        staleness=_sum([run.staleness for run in runs]),
        refused=_sum([run.refused for run in runs]),
        num_diverged=sum(run.has_diverged for run in runs),
        num_overrun=sum(run.num_overrun for run in runs),
        num_lost=sum(run.num_lost for run in runs),
        num_missing=sum(run.num_missing for run in runs),
        num_steps=sum(run.num_steps for run in runs),
        shares=_mean_shares([history.shares() for history in histories]),
        worker_shares=_by_worker(histories),
        ideal=_ideal(histories),
    )


def _tells_waiting(run: Run) -> bool:
    """Whether step lengths tell waiting from computing: DDP waits for the others inside its steps, unless emulation sets
    their length."""
    emulation = run.config.emulation
    has_length = run.is_simulated or emulation.seconds is not None or emulation.trace is not None
    return run.config.strategy.kind != "ddp" or run.num_workers == 1 or has_length


def _pairs(baseline: Sequence[Entry], entries: Sequence[Entry]) -> list[tuple[Run, Run]]:
    """Return pairs of runs with equal seeds, where both exist."""
    base = {entry.seed: entry.run for entry in baseline}
    both = [(base.get(entry.seed), entry.run) for entry in entries]
    return [(one, other) for one, other in both if one is not None and other is not None]


def _final(metrics: Sequence[Metric], runs: Sequence[Run]) -> dict[str, Interval]:
    found = {metric.name: [score for run in runs if (score := run.final(metric)) is not None] for metric in metrics}
    return {name: mean_interval(scores) for name, scores in found.items() if scores}


def _differences(metrics: Sequence[Metric], pairs: Sequence[tuple[Run, Run]]) -> dict[str, Interval]:
    found: dict[str, Interval] = {}
    for metric in metrics:
        scores = [(base.final(metric), own.final(metric)) for base, own in pairs]
        differences = [own - base for base, own in scores if base is not None and own is not None]
        if differences and metric.name != LOSS:
            found[metric.name] = mean_interval(differences)
    return found


def _weighted(runs: Sequence[Run], get: Callable[[Run], float]) -> float | None:
    """Return the mean over all applied arrivals."""
    weights = [sum(run.staleness.values()) for run in runs]
    return sum(w * get(run) for w, run in zip(weights, runs, strict=True)) / sum(weights) if sum(weights) else None


def _over_micro_batches(runs: Sequence[Run]) -> float | None:
    """Return the mean of the runs that divided batches; None without one."""
    found = [run.micro_batch_staleness for run in runs if run.micro_batch_staleness is not None]
    return sum(found) / len(found) if found else None


def _sum(counts: Sequence[Mapping[Key, int]]) -> dict[Key, int]:
    total: collections.Counter[Key] = collections.Counter()
    for each in counts:
        total.update(each)
    return {key: total[key] for key in sorted(total)}


def _mean_shares(shares: Sequence[Shares]) -> Shares | None:
    if not shares:
        return None
    names = ("computing", "pushing", "waiting", "pulling", "other")
    return Shares(**{name: math.fsum(getattr(each, name) for each in shares) / len(shares) for name in names})


def _by_worker(histories: Sequence[History]) -> dict[int, Shares]:
    num_workers = max((history.num_workers for history in histories), default=0)
    found = {}
    for worker in range(num_workers):
        own = _mean_shares([history.shares(worker) for history in histories if worker < history.num_workers])
        if own is not None:
            found[worker] = own
    return found


def _ideal(histories: Sequence[History]) -> Ideal | None:
    pooled: dict[int, list[float]] = collections.defaultdict(list)
    for history in histories:
        for worker, steps in history.step_seconds().items():
            pooled[worker] += steps
    return ideal(pooled)
