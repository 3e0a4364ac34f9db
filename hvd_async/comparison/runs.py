"""Reading finished runs, and what can be said of several of them together. Pure but for the reading."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hvd_async.errors import DataError


@dataclass(frozen=True)
class Point:
    """A validated version: training seconds and target tokens when it was made, loss in nats per token, BLEU if measured."""

    seconds: float
    tokens: int
    loss: float
    bleu: float | None


@dataclass(frozen=True)
class RunResult:
    """What a finished run says of itself. `points` rise in seconds; the last is the model at the end."""

    name: str
    label: str
    seconds: float
    tokens: int
    updates: int
    mean_staleness: float
    points: tuple[Point, ...]

    @property
    def finite_points(self) -> tuple[Point, ...]:
        """Those of `points` at which the run had not diverged."""
        return tuple(point for point in self.points if math.isfinite(point.loss))

    def seconds_to(self, loss: float) -> float | None:
        """Training seconds until the validation loss is `loss` or lower, linearly between points; None if it never is."""
        before: Point | None = None
        for point in self.finite_points:
            if point.loss <= loss:
                if before is None:
                    return point.seconds
                share = (before.loss - loss) / (before.loss - point.loss)
                return before.seconds + share * (point.seconds - before.seconds)
            before = point
        return None


def read_run(folder: pathlib.Path) -> RunResult:
    """Read the summary in a run's folder. Raises `DataError` if it is missing or damaged, or no loss in it is finite."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        points = tuple(Point(m["seconds"], m["tokens"], m["loss"], m["bleu"]) for m in summary["measurements"])
        result = RunResult(
            summary["name"],
            _label(summary),
            summary["seconds"],
            summary["tokens"],
            summary["updates"],
            summary["mean_staleness"],
            tuple(sorted(points, key=lambda point: point.seconds)),
        )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected the folder of a run that has ended") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); expected the summary of a run") from None
    if not result.finite_points:
        raise DataError(f"{path}: no validation with a finite loss in it; expected a run that went to its end")
    return result


def common_loss(runs: Sequence[RunResult]) -> float:
    """The lowest loss that every run reached: the highest among their best ones."""
    return max(min(point.loss for point in run.finite_points) for run in runs)


def compare(runs: Sequence[RunResult]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Header and rows of a table of `runs`; the speed-up is that over the first run, in training seconds to `common_loss`."""
    loss = common_loss(runs)
    header = (
        "run",
        "strategy",
        "seconds",
        "tokens",
        "updates",
        "staleness",
        "loss",
        "BLEU",
        f"to {loss:.3f} in",
        "speed-up",
    )
    base = runs[0].seconds_to(loss)
    rows = []
    for run in runs:
        last, reached = run.points[-1], run.seconds_to(loss)
        assert base is not None and reached is not None  # every run reached the common loss
        rows.append(
            (
                run.name,
                run.label,
                f"{run.seconds:.1f}",
                f"{run.tokens:,}",
                f"{run.updates:,}",
                f"{run.mean_staleness:.2f}",
                f"{last.loss:.3f}",
                "-" if last.bleu is None else f"{last.bleu:.1f}",
                f"{reached:.1f} s",
                f"{base / reached:.2f}x" if reached > 0 else "-",
            )
        )
    return header, rows


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned for a terminal: text left, numbers right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = []
    for line in (header, ["-" * width for width in widths], *rows):
        cells = [
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _label(summary: dict[str, Any]) -> str:
    kind, workers = summary["strategy"], summary["num_workers"]
    if kind != "async":
        return f"{kind}, {workers} workers" if kind != "single" else kind
    arrivals = summary["options"]["arrivals_per_update"]
    shown = "schedule" if isinstance(arrivals, list) else arrivals
    lockstep = ", lock-step" if summary["options"]["lockstep"] else ""
    provisional = ", provisional" if summary["options"].get("provisional") else ""  # older summaries: there were none
    return f"async N = {shown}, {workers} workers{lockstep}{provisional}"
