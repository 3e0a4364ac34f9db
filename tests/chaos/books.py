"""The books of a run that has finished: everything in its folder is that of a run that was never interrupted."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from hvd_async.errors import HvdAsyncError
from hvd_async.replay.replay import ReplayOptions, replay
from hvd_async.runs.event_log import read_events
from hvd_async.tasks.registry import make_task
from tests.chaos.task import BATCH_SIZE, BATCHES_PER_EPOCH, NUM_EPOCHS

EVALUATE_EVERY = 4
_FILES = ("config.yaml", "events.jsonl", "summary.json", ".lock", "checkpoints/v", "models/best/", "models/last/")


def faults_of(run: pathlib.Path) -> Iterator[str]:
    """Yield every fault of the finished run in the folder `run`, whose log is read and computed again."""
    events, summary = list(read_events(run / "events.jsonl")), json.loads((run / "summary.json").read_text())
    yield from _faults_of_updates(events, summary)
    yield from _faults_of_evaluations(events, summary)
    files = [str(file.relative_to(run)) for file in run.rglob("*") if not file.is_dir()]
    if strange := [name for name in files if not name.startswith(_FILES)]:
        yield f"left behind: {strange}"
    if len(list((run / "checkpoints").iterdir())) != 1:
        yield f"checkpoints: {sorted(path.name for path in (run / 'checkpoints').iterdir())}"
    best = json.loads((run / "models/best/meta.json").read_text())
    if best["version"] != summary["best"]["version"]:
        yield f"models/best is of version {best['version']}, expected {summary['best']['version']}"
    if summary["strategy"] in ("horovod", "ddp"):
        return  # the order in which their libraries sum is unknown
    try:
        replay(run, make_task, ReplayOptions(trusts_task=True), lambda line: None)
    except HvdAsyncError as error:
        yield f"replay: {error}"


def _faults_of_updates(events: list[dict[str, Any]], summary: dict[str, Any]) -> Iterator[str]:
    batches = sorted(event["batch"] for event in events if event["event"] == "arrival" and "version" in event)
    num_batches = NUM_EPOCHS * BATCHES_PER_EPOCH
    if batches != list(range(num_batches)):
        twice = sorted({batch for batch in batches if batches.count(batch) > 1})
        yield f"batches: missing {sorted(set(range(num_batches)) - set(batches))}, more than once {twice}"
    versions = [event["version"] for event in events if event["event"] == "update"]
    if versions != list(range(1, len(versions) + 1)) or summary["updates"] != len(versions):
        yield f"versions: {versions}, {summary['updates']} in the summary"
    expected = (num_batches * BATCH_SIZE, 0, 0)
    if (found := tuple(summary[key] for key in ("weight", "pending", "missing"))) != expected:
        yield f"weight, pending, missing: {found}, expected {expected}"
    lost = [event["worker"] for event in events if event["event"] == "lost"]
    if summary.get("lost_workers", 0) != len(lost):
        yield f"lost workers: {summary.get('lost_workers')} in the summary, {lost} in the log"


def _faults_of_evaluations(events: list[dict[str, Any]], summary: dict[str, Any]) -> Iterator[str]:
    measured = sorted(measurement["version"] for measurement in summary["measurements"])
    expected = sorted({*range(EVALUATE_EVERY, summary["updates"] + 1, EVALUATE_EVERY), summary["updates"]})
    if measured != expected or summary["unmeasured"]:
        yield f"measured: {measured}, expected {expected}; unmeasured: {summary['unmeasured']}"
    if sorted(event["version"] for event in events if event["event"] == "evaluation") != expected:
        yield "evaluations in the log are not those of the summary"
