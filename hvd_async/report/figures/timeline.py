"""The figure of what all workers and the store did in a part of a run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hvd_async.comparison.history import History, Span, read_history
from hvd_async.comparison.results import Row
from hvd_async.report import number_format, readings
from hvd_async.report.document import Figure
from hvd_async.report.figures.drawing import drawing, finish
from hvd_async.report.figures.style import ACTIVITIES, HATCHES, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TYPICAL_STEPS = 10
_THIN = 0.004
"""Share of the window below which a span has no room for an outline."""
_BETWEEN = 3.0
"""Lanes from the last worker of a panel to the first of the next, for the store and the title."""
_MOST_LANES = 16
"""Most workers that are drawn, those with the lowest numbers."""


@dataclass(frozen=True)
class TimeWindow:
    """A part of the timeline, in seconds of training."""

    start_seconds: float
    seconds: float


@dataclass(frozen=True)
class _Panel:
    variant: str
    title: str
    is_synchronous: bool
    num_workers: int
    start: float
    spans: Sequence[Span]
    losses: Sequence[tuple[int, float]]
    num_steps: int
    """Steps of the drawn workers that ended in the window."""


def draw_timeline(name: str, rows: Sequence[Row], window: TimeWindow | None = None) -> Figure | None:
    """Draw the first run of each variant, all for the same duration. None if no run has steps in it."""
    histories = [(row, read_history(row.runs[0])) for row in rows if row.runs]
    length = window.seconds if window is not None else _typical_length([history for _, history in histories])
    if length <= 0.0:
        return None
    panels = [_panel(row, history, window, length) for row, history in histories]
    if not any(panel.spans for panel in panels):
        return None
    return _draw(name, panels, length, has_window=window is not None)


def _typical_length(histories: Sequence[History]) -> float:
    """Return ten typical steps of the slowest worker of all runs, or the whole of a run that is shorter."""
    medians = [statistics.median(steps) for history in histories for steps in history.step_seconds().values()]
    lengths = [history.seconds for history in histories if history.seconds > 0.0]
    return min([_TYPICAL_STEPS * max(medians, default=0.0), *lengths])


def _panel(row: Row, history: History, window: TimeWindow | None, length: float) -> _Panel:
    start = window.start_seconds if window is not None else max(0.0, (history.seconds - length) / 2.0)
    spans = [span for span in history.spans(start, start + length) if span.worker is None or span.worker < _MOST_LANES]
    title = f"{short(row.variant, 90)}, seed {row.runs[0].config.seed}, from {number_format.seconds(start)} s on"
    losses = [each for each in history.losses if each[0] < _MOST_LANES and start <= each[1] < start + length]
    num_steps = sum(step.worker < _MOST_LANES and start < step.received_seconds <= start + length for step in history.steps)
    num_workers = min(history.num_workers, _MOST_LANES)
    return _Panel(row.variant, title, row.is_synchronous, num_workers, start, spans, losses, num_steps)


def _draw(name: str, panels: Sequence[_Panel], length: float, *, has_window: bool) -> Figure:
    from matplotlib.figure import Figure as Canvas
    from matplotlib.patches import Patch

    # The lanes of all panels are in one drawing: laying out many small ones would take seconds.
    tops = [sum(panel.num_workers + _BETWEEN for panel in panels[:number]) for number in range(len(panels) + 1)]
    with drawing():
        canvas = Canvas(figsize=(11.8, 1.0 + 0.2 * tops[-1]), layout="constrained")
        axes = canvas.subplots()
        for top, panel in zip(tops, panels, strict=False):
            _draw_panel(axes, panel, top, length)
        axes.set_yticks(
            [top + lane for top, panel in zip(tops, panels, strict=False) for lane in range(panel.num_workers + 1)],
            [name for panel in panels for name in _lanes(panel)],
            fontsize=7.5,
        )
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(tops[-1] - 1.8, -1.6)
        axes.set_xlim(0.0, length)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds from the beginning of the window")
        kinds = [kind for kind in ACTIVITIES if any(span.kind == kind for panel in panels for span in panel.spans)]
        patches = [
            Patch(facecolor=ACTIVITIES[kind], hatch=HATCHES[kind], edgecolor="#404040", linewidth=0.6, label=kind)
            for kind in kinds
        ]
        canvas.legend(handles=patches, loc="outside upper center", ncols=len(patches))
        where = "" if has_window else " in the middle of the run"
        caption = (
            f"What all workers did in {number_format.seconds(length)} s{where}: a lane for each, and one for the store."
        )
        if any(panel.losses for panel in panels):
            caption += " A cross: the worker died, and the run went on without it."
        if any(panel.num_workers == _MOST_LANES for panel in panels):
            caption += f" Of more than {_MOST_LANES} workers, only the first are shown."
        reading = readings.of_timeline({panel.variant: panel.num_steps for panel in panels})
        return finish(canvas, name, reading, caption, "The first run of each variant; totals are in the table of shares.")


def _lanes(panel: _Panel) -> list[str]:
    names = [f"worker {number}" for number in range(panel.num_workers)]
    return [*names, "updates" if panel.is_synchronous else "store"]


def _draw_panel(axes: Axes, panel: _Panel, top: float, length: float) -> None:
    """Draw a panel. `top`: position of its first lane."""
    by_lane: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for span in panel.spans:
        lane = panel.num_workers if span.worker is None else span.worker
        by_lane.setdefault((lane, span.kind), []).append((span.start - panel.start, span.end - span.start))
    for (lane, kind), pieces in sorted(by_lane.items()):
        is_thin = kind != "computing" and max(width for _, width in pieces) < _THIN * length
        axes.broken_barh(
            *(pieces, (top + lane - 0.4, 0.8)),
            facecolors=ACTIVITIES[kind],
            hatch="" if is_thin else HATCHES[kind],
            # An exchange of microseconds is visible only with an outline of its own colour.
            edgecolor=ACTIVITIES[kind] if is_thin else "#404040",
            linewidth=1.0 if is_thin else 0.4,
            zorder=3 if is_thin else 2,
        )
    for worker, seconds in panel.losses:
        axes.plot(seconds - panel.start, top + worker, marker="x", color="black", markersize=8, markeredgewidth=2, zorder=4)
    axes.text(0.0, top - 0.65, panel.title, va="bottom", fontsize=9.5)
