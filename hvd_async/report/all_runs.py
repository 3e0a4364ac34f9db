"""The table of all runs, each with its folder: the source of every number."""

from __future__ import annotations

import os
import pathlib
import urllib.parse
from collections.abc import Callable, Mapping, Sequence

from hvd_async.comparison.collection import Collection, Entry, runs_of
from hvd_async.comparison.metrics import weight_unit_of
from hvd_async.comparison.runs import Run
from hvd_async.comparison.statistics import reached
from hvd_async.report import number_format
from hvd_async.report.document import Cell, Column, Table
from hvd_async.report.number_format import NOTHING
from hvd_async.report.tables import rate_cell, value_cell
from hvd_async.tasks.metric import LOSS, Metric

Value = float | int | str | bool | None


def relative(path: pathlib.Path, output: pathlib.Path) -> str:
    """Return `path` relative to the report's folder."""
    return pathlib.PurePath(os.path.relpath(path.resolve(), output.resolve())).as_posix()


def fault_of(entry: Entry, output: pathlib.Path) -> str:
    """Return the fault in one line, without paths that another machine does not have."""
    fault = " ".join(entry.fault.split())
    for folder in sorted(
        {str(entry.folder.resolve()), str(entry.folder.absolute()), str(entry.folder)}, key=len, reverse=True
    ):
        fault = fault.replace(folder, relative(entry.folder, output))
    return fault or "not there"


def values_of(entry: Entry, collection: Collection, output: pathlib.Path) -> dict[str, Value]:
    """Return everything known about a run, by name; None for values that the run does not have."""
    run = entry.run
    when = None if run is None or collection.target is None else reached(run, collection.target)
    return {
        "environment": entry.environment,
        "variant": entry.variant,
        "rate": entry.rate,
        "seed": entry.seed,
        "folder": relative(entry.folder, output),
        "chosen": entry.is_chosen,
        "status": "failed" if run is None else run.status,
        "fault": fault_of(entry, output) if run is None else "",
        **{name: None if run is None else getattr(run, name) for name in _OF_LENGTH},
        **{
            f"reached_{name}": None if when is None else getattr(when, name)
            for name in ("seconds", "weight", "updates", "is_bound")
        },
        **_scores_of(run, collection.metrics),
        **(dict.fromkeys(_OF_RUN) if run is None else _of_run(run)),
    }


_OF_LENGTH = ("is_simulated", "seconds", "weight", "weight_unit", "updates")
_OF_RUN = ("weight_per_second", "mean_staleness", "micro_batch_staleness", "refused", "has_diverged")


def _scores_of(run: Run | None, metrics: Sequence[Metric]) -> dict[str, Value]:
    """Return the scores of the last measurement by name, `final_loss` and others, and the lowest loss."""
    best = None if run is None else min((point.loss for point in run.finite_points), default=None)
    scores = {} if run is None else run.points[-1].scores
    others = {f"final_{metric.name}": scores.get(metric.name) for metric in metrics if metric.name != LOSS}
    return {"final_loss": scores.get(LOSS), "best_loss": best, **others}


def _of_run(run: Run) -> dict[str, Value]:
    own: dict[str, Value] = {"refused": sum(run.refused.values())}
    return {name: own.get(name, getattr(run, name)) for name in _OF_RUN}


def runs_table(collection: Collection, output: pathlib.Path) -> Table:
    """Return a table with a line for each run, including failed runs and runs at other learning rates."""
    several, rates = len(collection.environments) > 1, any(entry.rate is not None for entry in collection.entries)
    metrics, unit = _measured(collection), weight_unit_of(runs_of(collection.entries))
    columns = [Column("variant", is_number=False)]
    columns += [Column("environment", is_number=False)] if several else []
    columns += [Column("learning rate")] if rates else []
    columns += [Column("seed"), Column("folder", is_number=False), Column("ended", is_number=False)]
    names = ["seconds", unit, "updates", "target at s"]
    for metric in metrics:
        names += [f"final {metric.title}", *([f"best {metric.title}"] if metric.name == LOSS else [])]
    columns += [Column(name) for name in [*names, f"{unit}/s", "staleness", "refused"]]
    rows = []
    for entry in collection.entries:
        values = values_of(entry, collection, output)
        cells = [Cell(entry.variant), *([Cell(entry.environment)] if several else [])]
        cells += [rate_cell(entry.rate)] if rates else []
        cells += [Cell(str(entry.seed)), _folder_cell(entry, values), _ended_cell(entry, values)]
        rows.append([*cells, *_number_cells(values, metrics)])
    return Table("All runs", columns, rows)


def _measured(collection: Collection) -> list[Metric]:
    """Return the metrics that some run has measured; without runs the loss."""
    points = [point for run in runs_of(collection.entries) for point in run.points]
    found = [metric for metric in collection.metrics if any(metric.name in point.scores for point in points)]
    return found or [Metric(LOSS, LOSS)]


def _folder_cell(entry: Entry, values: Mapping[str, Value]) -> Cell:
    path = str(values["folder"])
    return Cell(path, href=urllib.parse.quote(f"{path}/") if entry.folder.is_dir() else "")


def _ended_cell(entry: Entry, values: Mapping[str, Value]) -> Cell:
    if entry.run is None:
        return Cell(entry.state, str(values["fault"]), is_fault=True)
    if entry.run.has_diverged:
        return Cell("diverged", is_fault=True)
    return Cell(str(values["status"]), "" if entry.is_chosen else "not chosen")


def _number_cells(values: Mapping[str, Value], metrics: Sequence[Metric]) -> list[Cell]:
    bound = "≤ " if values["reached_is_bound"] else ""
    scores = {f"{word}_{metric.name}": metric.text for metric in metrics for word in ("final", "best")}
    forms: dict[str, Callable[[float], str]] = {
        "seconds": number_format.seconds,
        "weight": number_format.count,
        "updates": number_format.count,
        "reached_seconds": lambda value: bound + number_format.seconds(value),
        **{name: write for name, write in scores.items() if name in values},
        "weight_per_second": number_format.rate,
        "mean_staleness": number_format.staleness,
        "refused": number_format.count,
    }
    cells = []
    for name, write in forms.items():
        value = values[name]
        cells.append(value_cell(value, write) if isinstance(value, (int, float)) else Cell(NOTHING))
    return cells
