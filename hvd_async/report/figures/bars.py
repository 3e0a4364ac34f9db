"""Figures of counts and shares: staleness, and how time was spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hvd_async.comparison.history import Shares
from hvd_async.comparison.results import Row
from hvd_async.report import readings
from hvd_async.report.document import Figure
from hvd_async.report.figures.drawing import drawing, finish
from hvd_async.report.figures.style import ACTIVITIES, GRAY, HATCHES, Style, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_BARS = 50
SHARES = ("computing", "pushing", "waiting", "pulling", "other")


def draw_staleness(name: str, rows: Sequence[Row], looks: Mapping[str, Style]) -> Figure | None:
    """Draw a histogram for each variant that has stale gradients. None if no variant has."""
    from matplotlib.figure import Figure as Canvas

    stale = [row for row in rows if any(row.staleness)]
    if not stale:
        return None
    columns = min(3, len(stale))
    lines = math.ceil(len(stale) / columns)
    with drawing():
        canvas = Canvas(figsize=(1.2 + 3.2 * columns, 0.3 + 2.4 * lines), layout="constrained")
        grid = canvas.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        width = math.ceil((1 + max(max(row.staleness) for row in stale)) / _MOST_BARS)
        for axes, row in zip(grid.flat, stale, strict=False):
            total = sum(row.staleness.values())
            bars: dict[int, float] = {}
            for staleness, number in row.staleness.items():
                bars[staleness // width] = bars.get(staleness // width, 0.0) + number / total
            places = [(bar + 0.5) * width - 0.5 for bar in bars]
            axes.bar(places, list(bars.values()), width=0.85 * width, color=looks[row.variant].colour)
            if row.mean_staleness is not None:
                axes.axvline(row.mean_staleness, color=GRAY, linestyle="--", linewidth=1.2)
                axes.set_title(f"{short(row.variant)}\nmean {row.mean_staleness:.2f}")
            axes.tick_params(labelbottom=True)
        for number, axes in enumerate(grid.flat):
            axes.set_visible(number < len(stale))
            axes.xaxis.get_major_locator().set_params(integer=True)
            if number % columns == 0:
                axes.set_ylabel("share of arrivals")
            if number + columns >= len(stale):
                axes.set_xlabel("staleness in versions")
        fresh = [row.variant for row in rows if row.staleness and not any(row.staleness)]
        rest = f" Never stale: {', '.join(fresh)}." if fresh else ""
        caption = f"Staleness of the applied gradients; dashed: the mean.{rest}"
        means = {row.variant: row.mean_staleness for row in stale if row.mean_staleness is not None}
        description = "; ".join(f"{variant}: mean {mean:.2f}" for variant, mean in means.items())
        return finish(canvas, name, readings.of_staleness(means) if means else "", caption, description)


def draw_shares(name: str, rows: Sequence[Row]) -> Figure | None:
    """Draw a bar for each variant: how workers spent their time. None if nothing is known."""
    from matplotlib.figure import Figure as Canvas

    known = [(row.variant, row.shares) for row in rows if row.shares is not None]
    if not known:
        return None
    with drawing():
        canvas = Canvas(figsize=(9.5, 1.1 + 0.42 * len(known)), layout="constrained")
        axes = canvas.subplots()
        left = [0.0] * len(known)
        for kind in SHARES:
            widths = [max(0.0, getattr(shares, kind)) for _, shares in known]
            axes.barh(
                *(range(len(known)), widths, 0.68, left),
                label=kind,
                color=ACTIVITIES[kind],
                hatch=HATCHES[kind],
                edgecolor="#404040",
                linewidth=0.6,
            )
            _write_shares(left, widths, kind, axes)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(known)), [short(variant, 30) for variant, _ in known])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0.0, max(1.0, *left))
        axes.xaxis.set_major_formatter(lambda value, _: f"{100.0 * value:g} %")
        axes.set_xlabel("share of all workers' time")
        canvas.legend(loc="outside upper center", ncols=len(SHARES))
        reading = readings.of_shares({variant: shares.waiting for variant, shares in known})
        return finish(canvas, name, reading, _caption([shares for _, shares in known]), "The shares in the table below.")


def _write_shares(left: Sequence[float], widths: Sequence[float], kind: str, axes: Axes) -> None:
    """Write the shares into the bars that have room."""
    for line, (start, width) in enumerate(zip(left, widths, strict=True)):
        if width >= 0.06:
            colour = "white" if kind == "computing" else "black"
            back = None if kind == "computing" else {"facecolor": ACTIVITIES[kind], "edgecolor": "none", "pad": 1.0}
            axes.text(
                start + width / 2,
                line,
                f"{100.0 * width:.0f} %",
                ha="center",
                va="center",
                color=colour,
                fontsize=8,
                bbox=back,
            )


def _caption(shares: Sequence[Shares]) -> str:
    text = (
        "How the workers' time was spent, over all seeds. Other: the beginning and the end of a run,"
        " synchronous updates and, in real runs, reading data and validating."
    )
    if any(each.other < -0.005 for each in shares):
        text += " Where pushes overlap with computing, a bar is longer than the available time."
    return text
