"""Runs with known figures that were never computed."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hvd_async.comparison.collection import Entry
from hvd_async.comparison.results import Row
from hvd_async.comparison.runs import Point, Run
from hvd_async.comparison.target import Target
from hvd_async.config import dump_config, parse_config
from hvd_async.tasks.metric import Metric, metrics_to_json

LOSS = Metric("loss", "loss", unit="nats per token")
BLEU = Metric("bleu", "BLEU", digits=1, is_higher_better=True)
ACCURACY = Metric("accuracy", "accuracy", unit="%", digits=1, is_higher_better=True)
PERPLEXITY = Metric("perplexity", "perplexity", digits=2, note="on whole sentences")
METRICS = (ACCURACY, PERPLEXITY, LOSS)
TARGET = Target(LOSS, 3.0)
Events = Sequence[dict[str, Any]]
Rows = Callable[..., list[Row]]
CONFIG = parse_config({"output": "run", "task": {"data": {"folder": "text"}}, "training": {"epochs": 1}}, source="made")


def run(*points: tuple[float, float] | tuple[float, float, Mapping[str, float]], **fields: Any) -> Run:
    """Return a run with the loss (and other scores) `points[i][1:]` after `points[i][0]` seconds, ten images a second,
    and an update every two seconds.
    """
    measured = tuple(
        Point(float(seconds), int(10 * seconds), int(seconds) // 2, {"loss": loss, **dict(*others)})
        for seconds, loss, *others in points
    )
    last = measured[-1] if measured else Point(0.0, 0, 0, {"loss": 0.0})
    values: dict[str, Any] = {
        "folder": pathlib.Path("run"),
        "config": CONFIG,
        "status": "finished",
        "is_simulated": False,
        "num_workers": 1,
        "parameters": 10,
        "seconds": last.seconds,
        "weight": last.weight,
        "weight_unit": "images",
        "updates": last.updates,
        "mean_staleness": 0.0,
        "micro_batch_staleness": None,
        "staleness": {0: last.updates},
        "refused": {},
        "num_steps": last.updates,
        "num_overrun": 0,
        "num_lost": 0,
        "num_missing": 0,
        "metrics": METRICS,
        "points": measured,
    }
    return Run(**{**values, **fields})


def entry(variant: str, seed: int, found: Run | None, environment: str = "all", **fields: Any) -> Entry:
    """Return an entry of a comparison."""
    fault = "" if found is not None else "not run yet"
    return Entry(environment, variant, fields.pop("rate", None), seed, pathlib.Path(variant), found, fault, **fields)


def write_run(made: Run, events: Sequence[dict[str, Any]] = ()) -> pathlib.Path:
    """Write the files of a run with `events` as its log into `made.folder`, and return that folder."""
    made.folder.mkdir(parents=True, exist_ok=True)
    (made.folder / "config.yaml").write_text(dump_config(made.config))
    summary = {
        "name": made.folder.name,
        "status": made.status,
        **({"simulated": True} if made.is_simulated else {}),
        "num_workers": made.num_workers,
        "parameters": made.parameters,
        "seconds": made.seconds,
        "weight": made.weight,
        "weight_unit": made.weight_unit,
        "updates": made.updates,
        "mean_staleness": made.mean_staleness,
        "staleness": made.staleness,
        "micro_batches": _micro_batches(made),
        "refused": made.refused,
        "steps": made.num_steps,
        "overrun_steps": made.num_overrun,
        "metrics": metrics_to_json(made.metrics),
        "measurements": [
            {
                "version": p.updates,
                "weight": p.weight,
                "seconds": p.seconds,
                "scores": p.scores,
            }
            for p in made.points
        ],
    }
    (made.folder / "summary.json").write_text(json.dumps(summary))
    (made.folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return made.folder


def _micro_batches(made: Run) -> dict[str, float]:
    arrivals, mean = sum(made.staleness.values()), made.micro_batch_staleness
    if mean is None:
        return {"number": arrivals, "mean_staleness": made.mean_staleness}
    return {"number": 4 * arrivals, "mean_staleness": mean}


def arrival(
    worker: int, received: float, step: float, push: float = 0.0, wait: float = 0.0, pull: float = 0.0
) -> dict[str, Any]:
    """Return the event of an arrival received at `received`; `push`, `wait` and `pull` describe the previous exchange."""
    return {
        "event": "arrival",
        "worker": worker,
        "weight": 10,
        "step_seconds": step,
        "push_seconds": push,
        "wait_seconds": wait,
        "pull_seconds": pull,
        "received_seconds": received,
    }


def update(seconds: float, length: float) -> dict[str, Any]:
    """Return the event of an update made at `seconds` that took `length`."""
    return {"event": "update", "seconds": seconds, "update_seconds": length}
