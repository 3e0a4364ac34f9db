"""Samples: what the model of an evaluated version makes of a few examples, for people to read."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hvd_async.errors import DataError
from hvd_async.runs.folder import RunFolder
from hvd_async.system.files import write_file
from hvd_async.system.json_text import parse_json
from hvd_async.tasks.task import ShowsSamples, Task

# Characters that Markdown may take for more than themselves.
_MARKS = re.compile(r"([\\`*_{}\[\]()#+.!|<>~&-])")


def keep_samples(folder: RunFolder, task: Task, model: torch.nn.Module, version: int) -> None:
    """Write to `folder` what `task` shows of `model`, which has the parameters of `version`. Does nothing for a task that shows
    nothing. Called on the rank that evaluates; blocks on the disk. A failure to write is printed, and does not end the run."""
    if not isinstance(task, ShowsSamples):
        return
    samples = task.show_samples(model)
    if not samples:
        return
    try:
        lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
        write_file(folder.samples_of(version), "".join(lines).encode())
    except (DataError, TypeError, ValueError) as error:  # the last two: a value that JSON cannot hold, or no text at all
        sys.stderr.write(f"hvd-async: samples: {error}; continuing without the samples of version {version}\n")
        sys.stderr.flush()


def read_samples(folder: RunFolder, version: int) -> list[dict[str, Any]]:
    """Return the samples of `version`; none if there are none, or they are damaged."""
    try:
        lines = folder.samples_of(version).read_bytes().splitlines()
        found = [parse_json(line) for line in lines]
    except (OSError, ValueError):
        return []
    return [each for each in found if isinstance(each, dict)]


def forget_samples(folder: RunFolder, first_version: int) -> None:
    """Remove the samples of `first_version` and later ones, which a resumed run makes again. Raises `DataError` if the file
    system refuses."""
    for path in folder.samples.glob("v*.jsonl"):
        if path.stem[1:].isdigit() and int(path.stem[1:]) >= first_version:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise DataError(f"{path}: cannot be removed: {error.strerror or error}") from None


def as_markdown(samples: Sequence[Mapping[str, Any]]) -> str:
    """Return `samples` as a table in Markdown, a row for each, that shows their texts as they are."""
    names = list(dict.fromkeys(name for sample in samples for name in sample))
    rows = [names, ["---"] * len(names)]
    rows += [[_MARKS.sub(r"\\\1", " ".join(str(sample.get(name, "")).split())) for name in names] for sample in samples]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
