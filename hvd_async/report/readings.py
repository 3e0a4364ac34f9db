"""Sentences on what the figures of a report show, with their numbers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hvd_async.comparison.results import Row
from hvd_async.comparison.target import Target
from hvd_async.report import number_format
from hvd_async.system.words import and_listed
from hvd_async.tasks.metric import Metric

_MOST_NAMED = 4
"""Variants that a sentence names one by one; of more it names the two ends."""


def of_speed_ups(by_environment: Mapping[str, Sequence[Row]]) -> str:
    """Return which variant lies farthest to the right in each environment. Each has rows with a speed-up."""
    parts = []
    for environment, rows in by_environment.items():
        best = max(_whole(rows), key=_speed_up)
        where = f" ({environment})" if len(by_environment) > 1 else ""
        parts.append(f"{number_format.ratio(_speed_up(best))} times as fast with {best.variant}{where}")
    return f"Right of 1 is sooner than the baseline, left of it later; farthest right: {'; '.join(parts)}."


def of_curves(rows: Sequence[Row], target: Target | None, metric: Metric) -> str:
    """Return which variant ends best by `metric`, and the first to cross the target if it is one of `metric`, among those of
    which every seed ended well and came so far, if there are any. Empty if no run has a score at its end."""
    ends = {row.variant: row.final[metric.name].mean for row in _whole(rows) if metric.name in row.final}
    if not ends:
        return ""
    shown = {variant: metric.text(score) for variant, score in ends.items()}
    top = shown[min(ends, key=lambda variant: metric.cost(ends[variant]))]
    best = [variant for variant, text in shown.items() if text == top]  # equal as far as digits are shown
    base = next((row.variant for row in rows if row.is_baseline), None)
    if len(best) == len(ends) > 1:
        text = f"All end with {top}"
    else:
        text = f"{and_listed(best)} {'ends' if len(best) == 1 else 'end'} best, with {top}"
    if base in ends and base not in best:
        text += f"; the baseline, {base}, ends with {shown[base]}"
    there = [row for row in rows if row.seconds_to is not None and row.num_reached == len(row.entries)]
    times = {row.variant: row.seconds_to.mean for row in there if row.seconds_to is not None}
    if target is not None and target.metric.name == metric.name and times:
        first = min(times, key=lambda variant: times[variant])
        text += f"; the first at the target is {first}, after {number_format.seconds(times[first])} s"
    return f"{text}."


def of_rates(best: Mapping[str, float]) -> str:
    """Return the rate with the lowest mean loss of each variant; empty if no variant has a finite loss."""
    return (
        f"The loss is lowest at {_listed({variant: f'{rate:g}' for variant, rate in best.items()}, best)}." if best else ""
    )


def of_staleness(means: Mapping[str, float]) -> str:
    """Return the mean staleness of each variant that has stale gradients, at least one."""
    shown = {variant: number_format.staleness(mean) for variant, mean in means.items()}
    return f"The mean staleness of a gradient is {_listed(shown, means)}."


def of_shares(waiting: Mapping[str, float]) -> str:
    """Return the share of time for which the workers of each variant wait, at least one."""
    shown = {variant: number_format.percent(share) for variant, share in waiting.items()}
    return f"Waiting takes this share of the workers' time: {_listed(shown, waiting)}."


def of_timeline(steps: Mapping[str, int]) -> str:
    """Return how many steps the drawn workers of each panel finished in the window."""
    return f"Steps finished in equal time: {_listed({name: f'{n:,}' for name, n in steps.items()}, steps)}."


def _listed(shown: Mapping[str, str], values: Mapping[str, float]) -> str:
    """Return names with their values in words, in their order; of many only the least and the most."""
    names = list(shown)
    if len(names) > _MOST_NAMED:
        least, most = (chosen(names, key=lambda name: values[name]) for chosen in (min, max))
        return f"from {shown[least]} with {least} to {shown[most]} with {most}"
    return "; ".join(f"{shown[name]} with {name}" for name in names)


def _whole(rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows of which every run ended well and did not diverge; all, if there are none."""
    return [row for row in rows if len(row.runs) == len(row.entries) and not row.num_diverged] or rows


def _speed_up(row: Row) -> float:
    assert row.speed_up is not None
    return row.speed_up.mean
