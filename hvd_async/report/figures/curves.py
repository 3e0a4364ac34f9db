"""Figures of quality: over time, and over the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hvd_async.comparison.collection import Collection, Entry, runs_of
from hvd_async.comparison.metrics import metrics_of, weight_unit_of
from hvd_async.comparison.results import Row
from hvd_async.comparison.runs import Point, Run
from hvd_async.comparison.target import Target
from hvd_async.report import readings
from hvd_async.report.document import Figure
from hvd_async.report.figures.drawing import drawing, finish
from hvd_async.report.figures.style import GRAY, Style, short
from hvd_async.tasks.metric import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES: tuple[Callable[[Point], float], ...] = (
    lambda point: point.seconds,
    lambda point: point.weight,
    lambda point: point.updates,
)
# Share of the way from the first score to the best that is shown: the first improvement would compress the rest.
_SHOWN_WAY = 0.6


def draw_curves(name: str, rows: Sequence[Row], looks: Mapping[str, Style], target: Target | None) -> list[Figure]:
    """Draw a figure for each metric that was measured, over seconds, weight and updates; the loss first.

    `name` is followed by that of the metric.
    """
    metrics = metrics_of([run for row in rows for run in row.runs])
    measured = [metric for metric in metrics if any(_points(run, metric) for row in rows for run in row.runs)]
    return [_draw_metric(f"{name}-{metric.name}", rows, looks, target, metric) for metric in measured]


def _draw_metric(
    name: str, rows: Sequence[Row], looks: Mapping[str, Style], target: Target | None, metric: Metric
) -> Figure:
    from matplotlib.figure import Figure as Canvas

    runs = [run for row in rows for run in row.runs]
    unit = weight_unit_of(runs)
    seconds = "virtual seconds of training" if all(run.is_simulated for run in runs) else "seconds of training"
    with drawing():
        canvas = Canvas(figsize=(11.8, 4.0), layout="constrained")
        line = canvas.subplots(1, len(_AXES), squeeze=False, sharey="row")[0]
        for label, along, axes in zip((seconds, unit, "updates"), _AXES, line, strict=True):
            for row in rows:
                _draw_row(axes, row, looks[row.variant], along, metric)
            _draw_target(axes, target, metric)
            axes.set(xlabel=label)
            axes.set_xlim(left=0.0)
            axes.xaxis.set_major_formatter(_thousands)
            axes.xaxis.set_major_locator(_locator(5))
        line[0].set(ylabel=f"validation {metric.title_and_unit}")
        line[0].set_ylim(*_limits(runs, target, metric))
        handles = {label: handle for handle, label in zip(*line[0].get_legend_handles_labels(), strict=True)}
        columns = max(1, min(5, int(120 / (8 + max(len(short(row.variant).split("\n")[0]) for row in rows)))))
        canvas.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns)
        what = f"Validation {metric.title}"
        caption = f"{what} over seconds of training, {unit} and updates. {_key_of(rows)}".strip()
        lowest, highest = line[0].get_ylim()
        if any(not lowest <= score <= highest for run in runs for _, score in _points(run, metric)):
            caption += " Scores beyond the edge are not shown."
        description = f"{what} of {len(rows)} variants; the numbers are in the table of all runs."
        return finish(canvas, name, readings.of_curves(rows, target, metric), caption, description)


def _key_of(rows: Sequence[Row]) -> str:
    """Return what the lines and marks mean, as far as there are several kinds."""
    parts = []
    if any(len(row.runs) > 1 for row in rows):
        parts.append("Thin: single seeds; thick: their mean, as far as all seeds go.")
    if any(run.has_diverged for row in rows for run in row.runs):
        parts.append("×: the last finite measurement of a run that diverged.")
    return " ".join(parts)


def _points(run: Run, metric: Metric) -> list[tuple[Point, float]]:
    """Return the points at which the metric was measured, with its scores, before the run diverged."""
    found = [(point, point.finite(metric)) for point in run.finite_points]
    return [(point, score) for point, score in found if score is not None]


def _draw_row(axes: Axes, row: Row, look: Style, along: Callable[[Point], float], metric: Metric) -> None:
    curves = []
    for run in row.runs:
        points = _points(run, metric)
        if not points:
            continue
        x, y = [along(point) for point, _ in points], [value for _, value in points]
        curves.append((x, y))
        if len(row.runs) > 1:
            axes.plot(x, y, "-", color=look.colour, linewidth=0.7, alpha=0.4)
        if run.has_diverged:
            axes.plot(x[-1], y[-1], "x", color=look.colour, markersize=8, markeredgewidth=2)
    if not curves:
        return
    x_mean, y_mean = _mean_curve(curves)
    every = max(1, len(x_mean) // 8)
    axes.plot(
        *(x_mean, y_mean),
        linestyle=look.line,
        marker=look.marker,
        markevery=every,
        markersize=4,
        linewidth=1.8,
        color=look.colour,
        label=short(row.variant),
    )


def _mean_curve(curves: Sequence[tuple[list[float], list[float]]]) -> tuple[list[float], list[float]]:
    """Return the mean over seeds where all of them were measured, or lie between two measurements; at as many points as
    one seed has."""
    if len(curves) == 1:
        return curves[0]
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if low >= high:  # one measurement each, or no common range
        ends = [(x[-1], y[-1]) for x, y in curves]
        return [sum(x for x, _ in ends) / len(ends)], [sum(y for _, y in ends) / len(ends)]
    grid = np.linspace(low, high, max(2, min(len(x) for x, _ in curves)))
    values = np.mean([np.interp(grid, x, y) for x, y in curves], axis=0)
    return grid.tolist(), values.tolist()


def _draw_target(axes: Axes, target: Target | None, metric: Metric) -> None:
    if target is not None and target.metric.name == metric.name:
        axes.axhline(target.value, color=GRAY, linewidth=1.2, linestyle=(0, (2, 2)), label=f"target: {target}", zorder=1)


def _limits(runs: Sequence[Run], target: Target | None, metric: Metric) -> tuple[float, float]:
    """Return the lowest and the highest score to show: the best and the last of all runs, and part of the way to the best."""
    curves = [[metric.cost(score) for _, score in points] for run in runs if (points := _points(run, metric))]
    ends = [min(min(costs) for costs in curves), *(costs[-1] for costs in curves)]
    ends.append(max(min(costs) + _SHOWN_WAY * (costs[0] - min(costs)) for costs in curves))
    if target is not None and target.metric.name == metric.name:
        ends.append(target.cost)
    margin = 0.06 * (max(ends) - min(ends)) or 0.1
    first, last = metric.cost(min(ends) - margin), metric.cost(max(ends) + margin)
    return min(first, last), max(first, last)


def _thousands(value: float, _place: object = None) -> str:
    """Return labels such as `20k`, since axis titles have no room for exponents."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 10 or (abs(value) >= size and not value % (size / 10)):
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _locator(num: int) -> object:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(num)


def draw_rates(name: str, collection: Collection, environment: str, looks: Mapping[str, Style]) -> Figure | None:
    """Draw the final loss over the learning rate, if several rates were tried. None if no run has a finite loss."""
    from matplotlib.figure import Figure as Canvas

    tried = [entry for entry in collection.entries if entry.environment == environment and entry.rate is not None]
    if len({entry.rate for entry in tried}) < 2 or not runs_of(tried):
        return None
    with drawing():
        canvas = Canvas(figsize=(8.0, 4.2), layout="constrained")
        axes = canvas.subplots()
        best: dict[str, float] = {}
        for variant in collection.variants(environment):
            means = _draw_losses(axes, variant, [entry for entry in tried if entry.variant == variant], looks[variant])
            if means:
                best[variant] = min(means, key=lambda rate: means[rate])
        rates = sorted({entry.rate for entry in tried if entry.rate is not None})
        axes.set_xscale("log")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.set_xticks([], minor=True)
        loss = metrics_of(runs_of(tried))[0]
        axes.set(xlabel="learning rate", ylabel=f"final validation {loss.title_and_unit}")
        canvas.legend(loc="outside right center")
        caption = "Final loss over the learning rate. Small: each seed; large: their mean. × at the top: diverged."
        return finish(
            canvas, name, readings.of_rates(best), caption, "Final validation loss of each variant at each learning rate."
        )


def _draw_losses(axes: Axes, variant: str, entries: Sequence[Entry], look: Style) -> dict[float, float]:
    """Draw the final losses of a variant; return their mean at each rate at which one is finite."""
    means: dict[float, float] = {}
    for rate in sorted({entry.rate for entry in entries if entry.rate is not None}):
        runs = runs_of([entry for entry in entries if entry.rate == rate])
        losses = [run.points[-1].loss for run in runs if not run.has_diverged]
        axes.plot([rate] * len(losses), losses, look.marker, color=look.colour, markersize=3.5, alpha=0.5)
        if len(losses) < len(runs):
            axes.plot([rate], [0.98], "x", color=look.colour, markersize=9, transform=axes.get_xaxis_transform())
        if losses:
            means[rate] = math.fsum(losses) / len(losses)
    axes.plot(
        *(list(means), list(means.values())),
        linestyle=look.line,
        marker=look.marker,
        markersize=7,
        color=look.colour,
        label=short(variant, 24),
    )
    return means
