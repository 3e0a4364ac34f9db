"""Functions that replay runs of the toy, and that read and edit their logs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from hvd_async.errors import DivergedError
from hvd_async.replay.replay import ReplayOptions, Verdict, replay
from hvd_async.training.options import TrainOptions
from hvd_async.training.run import train
from tests.mpi.toy import Settings, ToyTask, make_config, parse_config


def print_nothing(_: str) -> None:
    """Print nothing."""


def replay_toy(folder: pathlib.Path, settings: Settings, **options: Any) -> Verdict:
    """Replay the toy run in `folder`, in this process and without its faults."""
    task = ToyTask(dataclasses.replace(settings, faults=[], uneven=None), rank=0)
    return replay(folder, lambda _: task, ReplayOptions(**options), print_nothing)


def run_single(
    folder: pathlib.Path, num_batches: int = 12, resume: bool = False, diverges: bool = False, **sections: Any
) -> Settings:
    """Run the toy in one process, in `folder`, with hashes of every fifth version."""
    training = {"epochs": 1, "device": "cpu", "tensorboard": False, "threads": 1, "hash_every": 5}
    sections = {**sections, "training": {**training, **sections.get("training", {})}}
    settings = Settings(make_config(folder, **sections), num_batches=num_batches)
    config = parse_config(settings.config, source="toy")
    with pytest.raises(DivergedError) if diverges else contextlib.nullcontext():
        train(config, lambda _: ToyTask(settings, rank=0), TrainOptions(resume=resume), environ={})
    return settings


def read_log(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Return all events."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def edit_log(folder: pathlib.Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Let `change` alter the list of events in place."""
    events = read_log(folder)
    change(events)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def nth(events: list[dict[str, Any]], kind: str, number: int) -> dict[str, Any]:
    """Return event number 0, 1, ... of `kind`."""
    return [event for event in events if event["event"] == kind][number]
