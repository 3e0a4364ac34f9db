"""The result of an example beside that of its twin: the same script with the other strategy, in a folder of its own."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hvd_async as ha

SUFFIXES = ("", "-async", "-horovod", "-ddp")
"""Ends of the names of folders that hold runs of one example: runs/digits, runs/digits-horovod, ..."""


def print_beside_twin(run: ha.ScriptRun) -> None:
    """Print the final scores and the seconds of `run` and, below, those of its twins; without one, the command that makes
    it. Call it on all ranks: rank 0 alone prints.
    """
    if run.rank > 0:
        return
    folder = Path(run.config.output)
    twins = find_twins(folder)
    for line in rows([(folder, run.summary), *twins]):
        print(line)
    if not twins:
        print(f"its twin: {twin_command(folder, run.summary, sys.orig_argv)}")


def find_twins(folder: Path) -> list[tuple[Path, Mapping[str, Any]]]:
    """Return the finished runs beside the one in `folder` that have its name up to `SUFFIXES`, with their summaries."""
    found = []
    for suffix in SUFFIXES:
        path = folder.with_name(_stem(folder.name) + suffix)
        if path != folder and (path / "summary.json").exists():
            summary = json.loads((path / "summary.json").read_text())
            if summary["status"] == "finished":
                found.append((path, summary))
    return found


def rows(runs: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[str]:
    """Return a line for each run: folder, strategy, workers, scores of the last version, seconds of training."""
    table = [[str(folder), *_cells(summary)] for folder, summary in runs]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def twin_command(folder: Path, summary: Mapping[str, Any], python: Sequence[str]) -> str:
    """Return the command that trains the same on as many workers with the other strategy.

    `python`: the command line of this process, as in `sys.orig_argv`.
    """
    kind = "horovod" if summary["strategy"] == "async" else "async"
    output = folder.with_name(f"{_stem(folder.name)}-{kind}")
    workers = max(2, summary["num_workers"])  # a process that is alone has no strategy to compare
    launch = [
        "hvd-async",
        "launch",
        "--workers",
        str(workers),
        "--set",
        f"strategy.kind={kind}",
        "--set",
        f"output={output}",
    ]
    return shlex.join([*launch, "--", "python", *python[1:]])


def _cells(summary: Mapping[str, Any]) -> list[str]:
    scores = summary["last"]["scores"]
    measured = [
        f"{metric['title']} {scores[metric['name']]:.{metric['digits']}f}{' ' * bool(metric['unit'])}{metric['unit']}"
        for metric in summary["metrics"]
    ]
    workers = "1 worker" if summary["num_workers"] == 1 else f"{summary['num_workers']} workers"
    return [summary["strategy"], workers, *measured, f"{summary['seconds']:.1f} s"]


def _stem(name: str) -> str:
    suffix = next((suffix for suffix in SUFFIXES if suffix and name.endswith(suffix)), "")
    return name.removesuffix(suffix)
