"""`hvd-async` in a process of its own, in the folder above `examples/`."""

from __future__ import annotations

import os
import pathlib
import sys

from tests.ranks import Completed, run_limited

ROOT = pathlib.Path(__file__).parents[2]


def hvd_async(*arguments: str | pathlib.Path, timeout: float = 180) -> Completed:
    """Run `hvd-async` with `arguments`, and return what it printed. It must succeed."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = (sys.executable, "-m", "hvd_async", *map(str, arguments))
    return run_limited(command, environ, timeout, cwd=ROOT).check()


def launch_script(kind: str, module: str, *arguments: str | pathlib.Path, workers: int = 2) -> Completed:
    """Train with a script of the examples on the ranks that strategy `kind` needs for `workers`."""
    options = ("--workers", str(workers), "--set", f"strategy.kind={kind}")
    return hvd_async("launch", *options, "--", sys.executable, "-m", module, *arguments)
