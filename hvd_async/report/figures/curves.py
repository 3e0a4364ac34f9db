"""Figures of quality: over time, and over the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hvd_async.comparison.collection import Collection, Entry, runs_of
from hvd_async.comparison.results import Row
from hvd_async.comparison.runs import Point, Run
from hvd_async.comparison.target import Target
from hvd_async.report.document import Figure
from hvd_async.report.figures.drawing import drawing, finish
from hvd_async.report.figures.style import GRAY, Style, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES: tuple[tuple[str, Callable[[Point], float]], ...] = (
    ("seconds of training", lambda point: point.seconds),
    ("target tokens", lambda point: point.tokens),
    ("updates", lambda point: point.updates),
)
# Share of the way from the first loss to the lowest that is shown: the first fall would compress the rest.
_SHOWN_FALL = 0.6


@dataclass(frozen=True)
class _Measure:
    name: str
    get: Callable[[Point], float | None]


_LOSS = _Measure("validation loss in nats per token", lambda point: point.loss)
_BLEU = _Measure("BLEU", lambda point: point.bleu)


def draw_curves(name: str, rows: Sequence[Row], looks: Mapping[str, Style], target: Target | None) -> Figure | None:
    """Draw loss, and BLEU if it was measured, over seconds, tokens and updates. None if there is nothing to show."""
    from matplotlib.figure import Figure as Canvas

    runs = [run for row in rows for run in row.runs]
    measures = [each for each in (_LOSS, _BLEU) if any(len(_points(run, each)) for run in runs)]
    if not measures:
        return None
    with drawing():
        canvas = Canvas(figsize=(11.8, 0.9 + 3.1 * len(measures)), layout="constrained")
        grid = canvas.subplots(len(measures), len(_AXES), squeeze=False, sharey="row")
        for measure, line in zip(measures, grid, strict=True):
            for (label, along), axes in zip(_AXES, line, strict=True):
                for row in rows:
                    _draw_row(axes, row, looks[row.variant], along, measure)
                _draw_target(axes, target, measure)
                axes.set(xlabel=label)
                axes.set_xlim(left=0.0)
                axes.xaxis.set_major_formatter(_thousands)
                axes.xaxis.set_major_locator(_locator(5))
            line[0].set(ylabel=measure.name)
            if measure is _BLEU:
                line[0].set_ylim(bottom=0.0)
            else:
                line[0].set_ylim(*_loss_limits(runs, target))
        handles = {label: handle for handle, label in zip(*grid[0][0].get_legend_handles_labels(), strict=True)}
        columns = max(1, min(5, int(120 / (8 + max(len(short(row.variant).split("\n")[0]) for row in rows)))))
        canvas.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns)
        if all(run.is_simulated for run in runs):
            for line in grid:
                line[0].set_xlabel("virtual seconds of training")
        seeds = (
            ("Thin: single seeds; thick: their mean, as far as all seeds go.")
            if any(len(row.runs) > 1 for row in rows)
            else ""
        )
        what = "Validation loss and BLEU" if len(measures) == 2 else "Validation loss" if measures[0] is _LOSS else "BLEU"
        cross = " ×: the last finite loss of a run that diverged." if any(run.has_diverged for run in runs) else ""
        caption = f"{what} over seconds of training, target tokens and updates. {seeds}{cross}".strip()
        return finish(canvas, name, caption, f"{what} of {len(rows)} variants; the numbers are in the table of all runs.")


def _points(run: Run, measure: _Measure) -> list[tuple[Point, float]]:
    found = [(point, measure.get(point)) for point in run.finite_points]
    return [(point, value) for point, value in found if value is not None]


def _draw_row(axes: Axes, row: Row, look: Style, along: Callable[[Point], float], measure: _Measure) -> None:
    curves = []
    for run in row.runs:
        points = _points(run, measure)
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


def _draw_target(axes: Axes, target: Target | None, measure: _Measure) -> None:
    if target is not None and (target.measure == "bleu") == (measure is _BLEU):
        axes.axhline(target.value, color=GRAY, linewidth=1.2, linestyle=(0, (2, 2)), label=f"target: {target}", zorder=1)


def _loss_limits(runs: Sequence[Run], target: Target | None) -> tuple[float, float]:
    finite = [[point.loss for point in run.finite_points] for run in runs if run.finite_points]
    lowest = min(min(losses) for losses in finite)
    highest = max(min(losses) + _SHOWN_FALL * (losses[0] - min(losses)) for losses in finite)
    ends = [lowest, highest, *(losses[-1] for losses in finite)]
    if target is not None and target.measure == "loss":
        ends.append(target.value)
    margin = 0.06 * (max(ends) - min(ends)) or 0.1
    return min(ends) - margin, max(ends) + margin


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
        for variant in collection.variants(environment):
            _draw_losses(axes, variant, [entry for entry in tried if entry.variant == variant], looks[variant])
        rates = sorted({entry.rate for entry in tried if entry.rate is not None})
        axes.set_xscale("log")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.set_xticks([], minor=True)
        axes.set(xlabel="learning rate", ylabel="final validation loss in nats per token")
        canvas.legend(loc="outside right center")
        caption = "Final loss over the learning rate. Small: each seed; large: their mean. × at the top: diverged."
        return finish(canvas, name, caption, "Final validation loss of each variant at each learning rate.")


def _draw_losses(axes: Axes, variant: str, entries: Sequence[Entry], look: Style) -> None:
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
