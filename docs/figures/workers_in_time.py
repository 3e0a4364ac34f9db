"""Draws workers_in_time.svg of docs/concepts.md: three workers, one of them slow, synchronous and asynchronous.

python docs/figures/workers_in_time.py
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

matplotlib.rcParams.update({"svg.hashsalt": "hvd_async", "svg.fonttype": "none"})  # the same file for the same figures

STEPS = (1.0, 1.2, 2.1)  # seconds of a step of each worker
END = 8.2
COLORS = ("#55a868", "#e8c468", "#c44e52")  # of staleness 0, 1, and more
WAITING = "#dddddd"


@dataclass(frozen=True)
class Step:
    """A worker computes on version `base` from `begin` to `end`; its gradient is in version `version`."""

    worker: int
    begin: float
    end: float
    base: int
    version: int

    @property
    def staleness(self) -> int:
        """Versions that were made between the one computed on and the one that the gradient is in."""
        return self.version - 1 - self.base


def synchronous() -> tuple[list[Step], list[float]]:
    """Return the steps, and the times at which versions 1, 2, ... are made, if every step waits for the slowest worker."""
    steps: list[Step] = []
    versions: list[float] = []
    while (begin := versions[-1] if versions else 0.0) < END:
        steps += [
            Step(worker, begin, begin + length, len(versions), len(versions) + 1) for worker, length in enumerate(STEPS)
        ]
        versions.append(begin + max(STEPS))
    return steps, versions


def asynchronous(arrivals: int) -> tuple[list[Step], list[float]]:
    """Return the same if no worker waits, and `arrivals` gradients are summed for each version."""
    steps: list[Step] = []
    versions: list[float] = []
    pending = 0
    begins, bases = [0.0] * len(STEPS), [0] * len(STEPS)
    while min(begins) < END:
        worker = min(range(len(STEPS)), key=lambda number: begins[number] + STEPS[number])
        end = begins[worker] + STEPS[worker]
        steps.append(Step(worker, begins[worker], end, bases[worker], len(versions) + 1))
        pending += 1
        if pending == arrivals:
            versions.append(end)
            pending = 0
        begins[worker], bases[worker] = end, len(versions)
    return steps, versions


def draw_panel(axes: Axes, title: str, steps: list[Step], versions: list[float]) -> None:
    """Draw a lane for each worker, and a line for each version."""
    done = [step for step in steps if step.end <= END]
    for step in steps:
        color = COLORS[min(step.staleness, len(COLORS) - 1)]
        axes.barh(
            step.worker, step.end - step.begin, left=step.begin, height=0.62, color=color, edgecolor="#404040", linewidth=0.6
        )
        axes.text(
            (step.begin + min(step.end, END)) / 2,
            step.worker,
            str(step.base),
            ha="center",
            va="center",
            fontsize=8,
            clip_on=True,
        )
        following = [other.begin for other in steps if other.worker == step.worker and other.begin >= step.end]
        if following and (wait := min(following) - step.end) > 0:
            axes.barh(
                step.worker, wait, left=step.end, height=0.62, color=WAITING, hatch="////", edgecolor="#aaaaaa", linewidth=0
            )
    named = 0.0
    for number, seconds in enumerate(versions, start=1):
        if seconds > END:
            break
        axes.axvline(seconds, color="#4c72b0", linewidth=1.2, zorder=0)
        if seconds - named > 0.17:  # else the number would lie on the one before
            axes.text(seconds, -0.62, str(number), color="#4c72b0", ha="center", va="bottom", fontsize=8)
            named = seconds
    staleness = sum(step.staleness for step in done) / len(done)
    axes.set_title(f"{title}: {len(done)} gradients, mean staleness {staleness:.1f}", loc="left", fontsize=10, pad=14)
    axes.set(xlim=(0, END), ylim=(len(STEPS) - 0.5, -0.5))
    axes.set_yticks(range(len(STEPS)), [f"worker {number}" for number in range(len(STEPS))])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw(path: pathlib.Path) -> None:
    """Write the figure to `path`."""
    figure = Figure(figsize=(8.6, 6.0), layout="constrained")
    panels = {
        "Synchronous": synchronous(),
        "Asynchronous, N = 1": asynchronous(1),
        "Asynchronous, N = 3": asynchronous(3),
    }
    for axes, (title, (steps, versions)) in zip(figure.subplots(len(panels), 1, sharex=True), panels.items(), strict=True):
        draw_panel(axes, title, steps, versions)
    axes.set_xlabel("seconds")
    names = ("computes on the version written in it; staleness 0", "staleness 1", "staleness 2 or more")
    patches = [Patch(facecolor=color, edgecolor="#404040", label=name) for color, name in zip(COLORS, names, strict=True)]
    waits = Patch(facecolor=WAITING, hatch="////", edgecolor="#aaaaaa", label="waits")
    figure.legend(handles=[*patches, waits], loc="outside lower center", ncols=4, fontsize=8.5, frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    draw(pathlib.Path(__file__).with_suffix(".svg"))
