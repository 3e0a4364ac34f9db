"""Finished runs as their folders describe them: configuration and summary."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hvd_async.config import RunConfig, load_config
from hvd_async.errors import ConfigError, DataError
from hvd_async.runs.folder import RunFolder
from hvd_async.system.json_text import parse_json
from hvd_async.system.printable import printable
from hvd_async.tasks.metric import LOSS, Metric, metrics_from_json


@dataclass(frozen=True)
class Point:
    """A validated version: seconds of training, weight of all batches and updates when it was made; its scores by metric."""

    seconds: float
    weight: float
    updates: int
    scores: Mapping[str, float]

    @property
    def loss(self) -> float:
        """The validation loss, which every evaluation measures."""
        return self.scores[LOSS]

    def finite(self, metric: Metric) -> float | None:
        """Return the score of `metric`; None if it was not measured, or is not finite."""
        score = self.scores.get(metric.name)
        return score if score is not None and math.isfinite(score) else None


@dataclass(frozen=True)
class Run:
    """A run that has ended. `points` rise in updates; the last is the final model. `metrics`: those of its task.

    `status`: see docs/run-folder.md. `weight`: that of all its batches, in `weight_unit`. `staleness`: applied arrivals by
    staleness. `micro_batch_staleness`: mean over micro-batches; None if no batch was divided. `refused`: arrivals by reason.
    `num_steps`, `num_overrun`: steps of the last process, and those whose real work took longer than the emulated length.
    `num_lost`: workers that died, without which the run went on. `num_missing`: batches that were not computed, since all workers
    left their loops.
    """

    folder: pathlib.Path
    config: RunConfig
    status: str
    is_simulated: bool
    num_workers: int
    parameters: int
    seconds: float
    weight: float
    weight_unit: str
    updates: int
    mean_staleness: float
    micro_batch_staleness: float | None
    staleness: Mapping[int, int]
    refused: Mapping[str, int]
    num_steps: int
    num_overrun: int
    num_lost: int
    num_missing: int
    metrics: tuple[Metric, ...]
    points: tuple[Point, ...]
    data_fingerprint: str | None = None
    """Hash of the text and of how it is prepared; None if the log lacks it."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return printable(self.folder.resolve().name)

    @property
    def loss_metric(self) -> Metric:
        """The metric of its loss."""
        return next(metric for metric in self.metrics if metric.name == LOSS)

    def final(self, metric: Metric) -> float | None:
        """Return the score of the final model; None if it was not measured, or if the run has diverged."""
        return None if self.has_diverged else self.points[-1].finite(metric)

    @property
    def finite_points(self) -> tuple[Point, ...]:
        """Points at which the run had not diverged."""
        return tuple(point for point in self.points if math.isfinite(point.loss))

    @property
    def has_diverged(self) -> bool:
        """Whether the final model has no finite loss."""
        return not self.points or not math.isfinite(self.points[-1].loss)

    @property
    def weight_per_second(self) -> float:
        """Weight per second of training."""
        return self.weight / self.seconds if self.seconds else math.nan

    @property
    def steps_per_second(self) -> float:
        """Applied arrivals per second of training."""
        return sum(self.staleness.values()) / self.seconds if self.seconds else math.nan


def read_run(folder: pathlib.Path) -> Run:
    """Read the configuration and the summary in a run's folder. Raises `DataError` if one is missing or damaged, or if
    the run was stopped before its end."""
    path = folder / "summary.json"
    if fault := RunFolder(folder).fault():
        raise DataError(f"{folder}: {fault}, expected the folder of a run")
    try:
        config = load_config(folder / "config.yaml")
    except ConfigError as error:
        raise DataError(
            f"{folder}: got no configuration of a run ({' '.join(str(error).split())}); expected the folder of a run"
        ) from None
    try:
        summary = parse_json(path.read_bytes())
        run = _from_summary(folder, config, summary)
    except FileNotFoundError:
        raise DataError(
            f"{folder}: got a run without {path.name}, which has not ended: `hvd-async status` says how far along it is, and"
            " --resume continues one that was interrupted"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); expected the summary of a run") from None
    if run.status == "stopped":
        raise DataError(f"{folder}: got a run that was stopped, expected one that has ended; resume it with --resume")
    if not run.points:
        raise DataError(f"{path}: got no validation, expected at least one")
    return run


def _from_summary(folder: pathlib.Path, config: RunConfig, summary: Mapping[str, Any]) -> Run:
    points = [Point(m["seconds"], m["weight"], m["version"], _scores(m["scores"])) for m in summary["measurements"]]
    metrics = metrics_from_json(summary["metrics"])
    if not metrics:
        raise DataError(
            f"{folder}: got a run that measured nothing, expected one with validation; a script has it by prepare(evaluate=...)"
        )
    if any(LOSS not in names for names in ([metric.name for metric in metrics], *(point.scores for point in points))):
        raise KeyError(LOSS)
    return Run(
        folder=folder,
        config=config,
        status=summary["status"],
        is_simulated=bool(summary.get("simulated", False)),
        num_workers=summary["num_workers"],
        parameters=summary["parameters"],
        seconds=summary["seconds"],
        weight=summary["weight"],
        weight_unit=printable(summary["weight_unit"]),
        updates=summary["updates"],
        mean_staleness=summary["mean_staleness"],
        micro_batch_staleness=_of_micro_batches(summary),
        staleness={int(staleness): count for staleness, count in summary["staleness"].items()},
        refused=dict(summary["refused"]),
        num_steps=summary["steps"],
        num_overrun=summary["overrun_steps"],
        num_lost=summary.get("lost_workers", 0),
        num_missing=summary.get("missing", 0),
        metrics=metrics,
        points=tuple(sorted(points, key=lambda point: point.updates)),
        data_fingerprint=first_event(folder).get("data_fingerprint"),
    )


def _of_micro_batches(summary: Mapping[str, Any]) -> float | None:
    parts, arrivals = summary.get("micro_batches"), sum(summary["staleness"].values())
    return float(parts["mean_staleness"]) if parts is not None and parts["number"] > arrivals else None


def _scores(scores: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(score) for name, score in scores.items()}


def first_event(folder: pathlib.Path) -> dict[str, Any]:
    """Return the event with which the run in `folder` began; empty if there is none. Does not read the whole log, which
    may be long."""
    try:
        with RunFolder(folder).events.open("rb") as file:
            event = parse_json(file.readline())
    except (OSError, ValueError):
        return {}
    return event if isinstance(event, dict) else {}
