"""Suites that take no time: a tiny corpus and model on two simulated workers, and runs that are computed in this
process or pretended.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import yaml

from hvd_async.__main__ import main
from hvd_async.comparison import execution
from hvd_async.comparison.execution import Execution
from hvd_async.comparison.suite import Suite
from hvd_async.comparison.suite_progress import Board
from hvd_async.config import RunConfig, load_config
from hvd_async.system.processes import Children
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.comparison.made import run, write_run
from tests.trees import changed


def write_text(folder: pathlib.Path) -> pathlib.Path:
    """Write a tiny corpus, which may serve many suites, and return its folder."""
    write_corpus(folder, train=120, validation=8, test=8)
    return folder


def write_base(folder: pathlib.Path, text: pathlib.Path, **sections: Any) -> None:
    """Write the run configuration that the tiny suite is based on."""
    base = {
        "output": "unused",
        "task": {
            "data": {"folder": str(text)},
            "vocabulary": {"size": 300},
            "model": {"encoder_layers": 1, "decoder_layers": 1, "width": 16, "feed_forward": 32, "heads": 2},
            "batching": {"tokens": 200},
            "metrics": [],
        },
        "strategy": {"kind": "async"},
        "training": {"updates": 4, "tensorboard": False},
        "validation": {"every": 2},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(changed(base, sections)))


def tiny(**changes: Any) -> dict[str, Any]:
    """Return the tiny suite, not yet written: two variants with two workers, about six updates each."""
    suite = {
        "base": "base.yaml",
        "launcher": "simulate",
        "workers": 2,
        "budget": {"weight": 2000},
        "measure_every": 500,
        "baseline": "horovod",
        "set": {"task.label_smoothing": 0.0},
        "variants": {"horovod": {"strategy.kind": "horovod"}, "N = 1": {"strategy.arrivals_per_update": 1}},
    }
    return {**suite, **changes}


def write(folder: pathlib.Path, suite: dict[str, Any]) -> pathlib.Path:
    """Write `suite` to a file, and return its path."""
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite, sort_keys=False))
    return path


Compute = Callable[[Sequence[str]], "subprocess.CompletedProcess[str] | None"]


def in_place_of_processes(monkeypatch: pytest.MonkeyPatch, compute: Compute) -> None:
    """Replace the processes of runs by calls of `compute` with the arguments of `hvd-async`."""
    monkeypatch.setattr(Children, "run", lambda _, arguments, inherited: compute(arguments))
    monkeypatch.setattr(execution, "run_in_sight", lambda arguments, verb, hint, inherited: compute(arguments))


def compute_here(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Compute a run in this process."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = main(arguments)
    return subprocess.CompletedProcess(list(arguments), status, output.getvalue(), errors.getvalue())


class PretendedRuns:
    """An imitation of computing runs. `names`: names of the runs started, in order; `arguments`: the arguments of each."""

    def __init__(self, losses: Callable[[RunConfig], Sequence[float]] = lambda _: (4.0, 2.0)) -> None:
        """`losses` returns the losses of a run after 10, 20, ... seconds, or nothing for a run that fails."""
        self._losses = losses
        self._lock = threading.Lock()
        self.names: list[str] = []
        self.arguments: list[list[str]] = []

    def __call__(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        words = list(arguments)
        overrides = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
        config = load_config(words[1], overrides)
        folder = pathlib.Path(config.output)
        with self._lock:
            self.names.append(folder.name)
            self.arguments.append(words)
        losses = self._losses(config)
        if not losses:
            return subprocess.CompletedProcess(words, 3, "", "hvd-async: it\n  failed\n")
        points = [(10.0 * number, loss) for number, loss in enumerate(losses, start=1)]
        workers = config.simulation.workers if words[0] == "simulate" else int(words[words.index("--workers") + 1])
        write_run(run(*points, folder=folder, config=config, num_workers=workers))
        return subprocess.CompletedProcess(words, 0, "progress\nfinished: pretended\n", "")


def execute(
    path: pathlib.Path, output: pathlib.Path, *, jobs: int = 1, only: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Compute the suite in `path`; return the failures, and the lines that were printed."""
    stream = io.StringIO()
    failures = Execution(Suite(path, output), output, only).run(jobs, Board(is_live=False, stream=stream))
    return failures, stream.getvalue().splitlines()
