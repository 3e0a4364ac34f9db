"""Functions that start the toy on real ranks and read the files of its runs."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from hvd_async.runs.event_log import read_events
from tests.mpi.toy import Settings, settings_text
from tests.ranks import Completed, run_ranks
from tests.runs.saved import load_latest_checkpoint
from tests.trees import changed


def run_toy(
    num_ranks: int,
    *settings: Settings,
    timeout: float = 120.0,
    hosts: Sequence[str] = (),
    mpirun_args: Sequence[str] = (),
    outlives_mpirun: bool = False,
) -> Completed:
    """Run the toy with each of `settings` in turn, in one job of `num_ranks` ranks. See `run_limited` for
    `outlives_mpirun`.
    """
    return run_ranks(
        num_ranks,
        "tests.mpi.toy",
        settings_text(settings),
        timeout=timeout,
        hosts=hosts,
        mpirun_args=mpirun_args,
        outlives_mpirun=outlives_mpirun,
    )


def signalled(command: Sequence[str], environ: Mapping[str, str], words: str, number: int) -> tuple[str, str]:
    """Send signal `number` to the run that `command` starts when it prints `words`; check its exit status, and return the rest of
    its output and its errors.
    """
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert any(words in line for line in job.stdout), "the job ended before it trained"
        job.send_signal(number)
        output, errors = job.communicate(timeout=60)
    assert job.returncode == 128 + number, errors
    return output, errors


def resumed(settings: Settings, **changes: Any) -> Settings:
    """Return the settings that resume a run without its faults."""
    return dataclasses.replace(settings, resume=True, faults=[], **changes)


def events_of(folder: pathlib.Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind, in order."""
    return [event for event in read_events(folder / "events.jsonl") if event["event"] == kind]


def losses_of(folder: pathlib.Path) -> list[float]:
    """Return the training loss of every update."""
    return [event["loss"] for event in events_of(folder, "update")]


def summary_of(folder: pathlib.Path) -> dict[str, Any]:
    """Return the summary of the run in `folder`."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def write_config(folder: pathlib.Path, **sections: Any) -> pathlib.Path:
    """Write `run.yaml` into `folder`, for a tiny run on the text in `folder`/text with the output `folder`/run; return
    its path.
    """
    tree: dict[str, Any] = {
        "output": str(folder / "run"),
        "task": {
            "data": {"folder": str(folder / "text")},
            "vocabulary": {"size": 300},
            "model": {"encoder_layers": 1, "decoder_layers": 1, "width": 16, "feed_forward": 32, "heads": 2},
            "batching": {"tokens": 100},
            "metric_sentences": 4,
        },
        "training": {"weight": 1500, "device": "cpu", "tensorboard": False},
        "validation": {"every": 3},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(changed(tree, sections)))
    return path


def checkpoint_checksum(folder: pathlib.Path) -> int:
    """Return a checksum of the parameters and the optimizer's state in the last checkpoint."""
    checkpoint = load_latest_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    checksum = 0
    for name in sorted(checkpoint.tensors):
        checksum = zlib.crc32(checkpoint.tensors[name].numpy().tobytes(), checksum)
    return checksum


__all__ = [
    "Settings",
    "checkpoint_checksum",
    "events_of",
    "losses_of",
    "resumed",
    "run_toy",
    "signalled",
    "summary_of",
    "write_config",
]
