"""The way to the best scores of the baseline: when each variant came how near to them. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hvd_async.comparison.results import Row
from hvd_async.comparison.runs import Run
from hvd_async.comparison.statistics import Interval, known_ratio, reached
from hvd_async.comparison.target import Target
from hvd_async.tasks.metric import Metric

NEAR = (0.10, 0.05, 0.01)
"""Parts of the best score that are still missing at a milestone."""


@dataclass(frozen=True)
class Passage:
    """How the runs of a variant passed a milestone.

    Attributes:
        missing: the part of the best score that is missing at the milestone, of `NEAR`.
        seconds_to: cost of the runs that reached it.
        speed_up, weight_efficiency: seconds, or weight, of the baseline / own, seed by seed, where both reached it; the weight
            only of runs with one unit of weight.
    """

    row: Row
    target: Target
    missing: float
    num_reached: int
    seconds_to: Interval | None
    speed_up: Interval | None
    weight_efficiency: Interval | None


def best_of(metric: Metric, rows: Sequence[Row]) -> float | None:
    """Return the best score of the baseline's runs, each at its own best measurement, as their mean; None if one has no score, or
    the mean is shown as 0 or below it.

    Of the baseline alone, since the best of several variants would be the luckiest of them.
    """
    runs = [run for row in rows if row.is_baseline for run in row.runs]
    found = [
        scores for run in runs if (scores := [s for point in run.finite_points if (s := point.finite(metric)) is not None])
    ]
    if not found or len(found) < len(runs):
        return None
    best = statistics.fmean(max(scores) if metric.is_higher_better else min(scores) for scores in found)
    return best if best > 0.0 and not metric.is_shown_as_zero(best) else None


def milestones(metric: Metric, best: float, rows: Sequence[Row]) -> Iterator[Passage]:
    """Yield the passages of all `rows` of an environment, milestone by milestone, `best` being their `best_of`."""
    base = {entry.seed: entry.run for row in rows if row.is_baseline for entry in row.entries}
    for missing in NEAR:
        target = Target(metric, best * (1.0 - missing if metric.is_higher_better else 1.0 + missing))
        for row in rows:
            own = [when.seconds for run in row.runs if (when := reached(run, target)) is not None]
            pairs = [(base.get(entry.seed), entry.run) for entry in row.entries]
            yield Passage(
                row,
                target,
                missing,
                len(own),
                known_ratio([seconds for seconds in own if seconds > 0.0]),
                known_ratio([ratio for pair in pairs if (ratio := _ratio_of(*pair, target, "seconds")) is not None]),
                known_ratio([ratio for pair in pairs if (ratio := _ratio_of(*pair, target, "weight")) is not None]),
            )


def _ratio_of(base: Run | None, own: Run | None, target: Target, what: str) -> float | None:
    """Return what the baseline needed / what the run needed; None if one of them did not reach the target."""
    if base is None or own is None or (what == "weight" and base.weight_unit != own.weight_unit):
        return None
    needed, others = (None if (when := reached(run, target)) is None else float(getattr(when, what)) for run in (base, own))
    return needed / others if needed and others else None
