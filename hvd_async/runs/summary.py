"""The summary of a run: how it ended, and the run in numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hvd_async.runs.evaluations import EvaluationHistory
from hvd_async.runs.recorder_context import RunContext
from hvd_async.runs.status import resumed_text
from hvd_async.runs.totals import staleness_text
from hvd_async.store.wire.stop import StopNotice
from hvd_async.system.files import write_file
from hvd_async.tasks.metric import describe, metrics_from_json, metrics_to_json


@dataclass(frozen=True)
class Ending:
    """How a run ended. `status` is a word of docs/run-folder.md; `stop` is the notice of a stop before the end.

    `num_steps`: steps of all workers in this process; `num_overrun`: steps that exceeded their emulated length.
    """

    status: str
    num_workers: int
    num_steps: int
    num_overrun: int = 0
    stop: StopNotice | None = None


def write_summary(run: RunContext, ending: Ending, history: EvaluationHistory, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write `summary.json` and return its contents. `facts`: entries from the parts of the recorder."""
    best, last, stop = history.best, history.last, ending.stop
    summary = {
        "name": run.folder.root.name,
        "status": ending.status,
        "job": None if run.provenance is None else run.provenance.job_to_json(),
        **run.describe_strategy(),
        "num_workers": ending.num_workers,
        "parameters": run.flat.num_parameters,
        "weight_unit": run.task.weight_unit,
        **facts,
        "steps": ending.num_steps,
        "overrun_steps": ending.num_overrun,
        "stop": None if stop is None or stop.is_end else stop.to_json(),
        "metrics": metrics_to_json(run.task.metrics),
        "measurements": history.to_json(),
        "score": history.metric.name,
        "best": None if best is None else asdict(best),
        "last": None if last is None else asdict(last),
    }
    write_file(run.folder.summary, json.dumps(summary, indent=2).encode())
    return summary


def summary_lines(summary: Mapping[str, Any], output: str) -> list[str]:
    """Return lines for people on how a run ended. The last line is complete by itself: people look for it in a log."""
    last = summary["last"]
    scores = "" if last is None else f", {describe(last['scores'], metrics_from_json(summary['metrics']), ', ')}"
    num_lost = summary.get("lost_workers", 0)
    lost = "" if not num_lost else f", {num_lost} worker{'s' if num_lost > 1 else ''} lost on the way"
    num_joined = summary.get("joined_workers", 0)
    lost += "" if not num_joined else f", {num_joined} joined"
    unit = "virtual s" if summary.get("simulated") else "s"
    why = ", since validation.patience is exhausted" if summary["status"] == "finished early" else ""
    lines = []
    if summary.get("unmeasured"):
        lines.append(f"due for evaluation but not evaluated: versions {', '.join(map(str, summary['unmeasured']))}")
    if summary["measurements"] and summary["best"] is None and summary["status"] != "diverged":
        lines.append(f"no evaluation measured a finite {summary['score']}, so there is no models/best")
    if summary["refused"]:
        lines.append("refused arrivals: " + ", ".join(f"{reason} {count}" for reason, count in summary["refused"].items()))
    lines.append(
        f"{summary['status']}{why}: version {summary['updates']}, {summary['weight']:,.0f} {summary['weight_unit']} in"
        f" {summary['seconds']:.1f} {unit},"
        f" staleness {_staleness(summary)}{scores}{resumed_text(summary['processes'])}{lost};"
        f" see {output}"
    )
    return lines


def _staleness(summary: Mapping[str, Any]) -> str:
    parts = summary.get("micro_batches", {"number": 0, "mean_staleness": 0.0})  # not in summaries of earlier versions
    num_parts = parts["number"] / (sum(summary["staleness"].values()) or 1)
    return staleness_text(summary["mean_staleness"], parts["mean_staleness"], num_parts)
