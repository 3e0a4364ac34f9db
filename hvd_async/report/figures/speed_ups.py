"""The figure of the answer: how much sooner than the baseline each variant reached the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hvd_async.comparison.results import Row
from hvd_async.comparison.target import Target
from hvd_async.report import readings
from hvd_async.report.document import Figure
from hvd_async.report.figures.drawing import drawing, finish
from hvd_async.report.figures.style import GRAY, Style, short

# In inches: legible on a telephone, where only this figure is shrunk instead of scrolled.
_WIDTH = 6.0

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_speed_ups(
    name: str, by_environment: Mapping[str, Sequence[Row]], looks: Mapping[str, Style], target: Target | None
) -> Figure | None:
    """Draw a line for each variant in each environment, with its interval. None if no variant can be compared with the
    baseline."""
    from matplotlib.figure import Figure as Canvas

    shown = {
        environment: [row for row in rows if row.speed_up and not row.is_baseline]
        for environment, rows in by_environment.items()
    }
    environments = [environment for environment, rows in shown.items() if rows]
    if not environments:
        return None
    counts = [len(shown[environment]) for environment in environments]
    ideals = {environment: _ideal(by_environment[environment]) for environment in environments}
    means = [row.speed_up.mean for rows in shown.values() for row in rows if row.speed_up]
    right = 1.25 * max(1.0, *means, *(ideal for ideal in ideals.values() if ideal is not None))
    with drawing():
        canvas = Canvas(figsize=(_WIDTH, 0.8 + 0.35 * len(environments) + 0.27 * sum(counts)), layout="constrained")
        grid = canvas.subplots(
            len(environments), 1, squeeze=False, sharex=True, height_ratios=[count + 0.6 for count in counts]
        )
        for axes, environment in zip(grid.flat, environments, strict=True):
            _draw_environment(axes, shown[environment], looks, ideals[environment])
            if len(by_environment) > 1:
                axes.set_title(short(environment, 60), loc="left")
        grid.flat[-1].set_xlim(0.0, right)
        grid.flat[-1].set_xlabel(f"speed-up over the baseline in time to {target}")
        caption = "Speed-up over the baseline in time to the target, with 95 % intervals over seeds if there are several."
        if any(ideal is not None for ideal in ideals.values()):
            caption += (
                " Dotted: upper limit of the gain in steps per second by not waiting, for the measured"
                " step times that allow most."
            )
        if any(row.speed_up.high > right for rows in shown.values() for row in rows if row.speed_up):
            caption += " An interval that touches the right edge continues beyond it."
        reading = readings.of_speed_ups({environment: shown[environment] for environment in environments})
        return finish(canvas, name, reading, caption, "The speed-ups in the tables of each environment.")


def _ideal(rows: Sequence[Row]) -> float | None:
    """Return the limit by the step times of the baseline if it waits at all, or of another variant whose step times allow
    more."""
    base = next((row for row in rows if row.is_baseline), None)
    if base is None or base.ideal is None or not base.is_synchronous:
        return None
    return max(row.ideal.speed_up for row in rows if row.ideal is not None)


def _draw_environment(axes: Axes, rows: Sequence[Row], looks: Mapping[str, Style], ideal: float | None) -> None:
    axes.axvline(1.0, color="black", linewidth=1.2)
    if ideal is not None:
        axes.axvline(ideal, color=GRAY, linewidth=1.2, linestyle=":")
    for line, row in enumerate(rows):
        assert row.speed_up is not None
        look, speed_up = looks[row.variant], row.speed_up
        ends = [[speed_up.mean - speed_up.low], [speed_up.high - speed_up.mean]] if speed_up.is_known else None
        axes.errorbar(
            speed_up.mean, line, xerr=ends, fmt=look.marker, color=look.colour, capsize=3, markersize=6, linewidth=1.8
        )
    axes.set_yticks(range(len(rows)), [short(row.variant) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
