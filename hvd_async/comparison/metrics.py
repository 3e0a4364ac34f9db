"""Metrics and units of weight of several runs, which may be of different tasks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hvd_async.comparison.runs import Run
from hvd_async.errors import DataError
from hvd_async.tasks.metric import LOSS, Metric


def metrics_of(runs: Sequence[Run]) -> tuple[Metric, ...]:
    """Return the metrics that any of `runs` has, the loss first; empty without runs.

    Title and decimals are those of the first run that has the metric; the unit is left out if runs have different ones, and
    different notes are given one after the other.
    Raises `DataError` if higher scores of a metric are better in one run, and lower scores in another.
    """
    found: dict[str, tuple[Metric, Run]] = {}
    notes: dict[str, dict[str, None]] = {}
    for run in runs:
        for metric in run.metrics:
            known, first = found.setdefault(metric.name, (metric, run))
            if metric.is_higher_better != known.is_higher_better:
                raise DataError(
                    f"{run.folder}: {metric.name}: got a metric of which {metric.better} is better, expected {known.better} as"
                    f" in {first.folder}; report these runs separately"
                )
            if metric.unit != known.unit:
                found[metric.name] = replace(known, unit=""), first
            notes.setdefault(metric.name, {})[metric.note] = None
    metrics = [replace(metric, note="; or ".join(filter(None, notes[name]))) for name, (metric, _) in found.items()]
    return tuple(sorted(metrics, key=lambda metric: metric.name != LOSS))


def weight_unit_of(runs: Sequence[Run]) -> str:
    """Return the unit of the weights of all `runs`; `weight` if they have different ones, and without runs."""
    units = {run.weight_unit for run in runs}
    return units.pop() if len(units) == 1 else "weight"
