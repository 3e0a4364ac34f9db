"""Means over seeds with 95 % intervals, and the time at which a run reached a target. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hvd_async.comparison.runs import Point, Run
from hvd_async.comparison.target import Target


@dataclass(frozen=True)
class Interval:
    """The mean of `num` measurements with a 95 % interval; with a single measurement both ends are the mean."""

    mean: float
    low: float
    high: float
    num: int

    @property
    def is_known(self) -> bool:
        """Whether there is an interval: a single measurement has none."""
        return self.num > 1


@dataclass(frozen=True)
class Reached:
    """The point at which a run first reached a target: seconds of training, weight, updates.

    Read off the line between the measurements before and after, so `updates` may be fractional. `is_bound`: the run had
    reached the target at its first measurement, so these values are upper limits.
    """

    seconds: float
    weight: float
    updates: float
    is_bound: bool = False


def reached(run: Run, target: Target) -> Reached | None:
    """Return when `run` first reached `target`; None if it never did. Measurements that are not finite are skipped."""
    before: Point | None = None
    for point in run.finite_points:
        value = target.cost_of(point)
        if value is None:
            continue
        if value > target.cost:
            before = point
            continue
        if before is None:
            return Reached(point.seconds, point.weight, point.updates, is_bound=True)
        cost_before = target.cost_of(before)
        assert cost_before is not None
        share = (cost_before - target.cost) / (cost_before - value)

        def at(get: Callable[[Point], float], first: Point = before, second: Point = point, share: float = share) -> float:
            return get(first) + share * (get(second) - get(first))

        return Reached(at(lambda p: p.seconds), at(lambda p: p.weight), at(lambda p: p.updates))
    return None


def weight_efficiency(baseline: Run, run: Run) -> float:
    """Return the weight of `baseline` / the weight of `run` to the lowest loss that both reached: 1 if each batch is worth
    as much."""
    target = Target(run.loss_metric, max(min(point.loss for point in each.finite_points) for each in (baseline, run)))
    needed, others = reached(baseline, target), reached(run, target)
    assert needed is not None and others is not None  # both reached it
    return needed.weight / others.weight


def mean_interval(values: Sequence[float]) -> Interval:
    """Return mean and 95 % interval of `values`, one for each seed, by Student's t."""
    mean, num = statistics.fmean(values), len(values)
    half = _half(values)
    return Interval(mean, mean - half, mean + half, num)


def ratio_interval(ratios: Sequence[float]) -> Interval:
    """Return mean and 95 % interval of positive `ratios`, one for each seed: Student's t of their logarithms, which
    treats a ratio and its inverse alike. Also used for durations and counts, so that no end is below 0, however few the
    seeds."""
    logarithms = [math.log(ratio) for ratio in ratios]
    mean, half = statistics.fmean(logarithms), _half(logarithms)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(ratios))


def known_ratio(ratios: Sequence[float]) -> Interval | None:
    """Return `ratio_interval`; None without ratios."""
    return ratio_interval(ratios) if ratios else None


def _half(values: Sequence[float]) -> float:
    """Return half the width of the interval."""
    if len(values) == 1:
        return 0.0
    from scipy.special import stdtrit  # slow to import

    return float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
