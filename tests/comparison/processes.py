"""Comparisons in processes of their own, and the processes that they start."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

SECONDS = 120.0  # generous: whatever a test waits for happens within it, even on a busy machine


def until(condition: Callable[[], bool], parent: subprocess.Popen[str] | None = None) -> None:
    """Wait until `condition` holds; fail if `parent` ends first, or if it takes too long."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        assert parent is None or parent.poll() is None, parent.communicate()
        time.sleep(0.002)  # what processes do is only visible in files


def children_of(pid: int) -> list[int]:
    tasks = pathlib.Path(f"/proc/{pid}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def state_of(pid: int) -> str:
    """Return the state that `ps` shows: T for stopped, Z for dead but not yet reaped; an empty string if there is no
    such process.
    """
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    return state_of(pid) not in ("Z", "X", "")


@contextlib.contextmanager
def compare(path: pathlib.Path, output: pathlib.Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start `hvd-async compare` in a process with a group of its own, and kill it at the end of the block."""
    command = [sys.executable, "-m", "hvd_async", "compare", str(path), "--output", str(output), *arguments]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield parent
    finally:
        parent.kill()
        parent.communicate()


def events_of(output: pathlib.Path, name: str) -> pathlib.Path:
    return output / "runs" / name / "events.jsonl"
