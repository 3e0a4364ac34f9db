"""A process that keeps a tracker: its packages are slow to import, and may wait for a network that does not answer.

The process reads JSON lines from its standard input: the tracker's name and the run, then calls of its methods. It prints one
line when it ends: why it failed, or nothing but `{}`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from hvd_async.runs.trackers import TRACKERS, TrackedRun, check_variables
from hvd_async.system import interpreter
from hvd_async.system.json_text import parse_json
from hvd_async.system.parent_death import tie_to

_MOST_WAITING = 10_000
"""Calls that may wait for a slow tracker; more are left out, and counted."""
_MOST_LETTERS = 500


class TrackerProcess:
    """A tracker in a process of its own, as a `CurveSink`. Its methods do not wait for it, but for `wait`."""

    def __init__(self, tracker: str, run: TrackedRun) -> None:
        """Start nothing."""
        self.title = self.place = tracker
        self._run = run
        self._waiting: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        self._num_left_out = 0
        self._process: subprocess.Popen[str]
        self._writer = threading.Thread(target=self._write, name=f"hvd-async-{tracker}", daemon=True)

    def open(self) -> None:
        """Start the process. Raises `SetupError` if a variable is missing without which the tracker cannot work."""
        check_variables(self.title)
        command = [sys.executable, *interpreter.flags(), "-m", "hvd_async.runs.tracker_process"]
        self._process = subprocess.Popen(  # a list, no shell
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            start_new_session=True,  # so that it can be ended with its own processes, and Ctrl-C does not reach it
            preexec_fn=functools.partial(tie_to, os.getpid(), signal.SIGKILL),
        )
        self._writer.start()
        run = self._run
        settings = {key: value if _is_plain(value) else str(value) for key, value in run.settings.items()}
        self._waiting.put([self.title, run.name, settings, str(run.record)])

    def add(self, points: Mapping[str, float], version: int) -> None:
        """Queue a point for each of the named curves. Raises `RuntimeError` if the tracker has failed."""
        self._call(["add", dict(points), version])

    def add_text(self, name: str, text: str, version: int) -> None:
        """Queue a text. Raises `RuntimeError` if the tracker has failed."""
        self._call(["add_text", name, text, version])

    def finish(self, *, is_failed: bool) -> None:
        """Have what is left sent, and the run ended."""
        self._waiting.put(["close", is_failed])
        self._waiting.put(None)

    def wait(self, until: float) -> None:
        """Wait for the end until `until`, a time of `time.monotonic`; then the process is killed.

        Raises `RuntimeError` if the tracker has failed, did not end in time, or points were left out.
        """
        self._writer.join(max(0.0, until - time.monotonic()))
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._kill()
            raise RuntimeError("it did not answer in time; what was not sent is lost") from None
        self._raise()
        if self._num_left_out:
            raise RuntimeError(f"too slow: {self._num_left_out:,} points were left out")

    def _call(self, call: list[Any]) -> None:
        if self._process.poll() is not None:
            self._raise()
        if self._waiting.qsize() >= _MOST_WAITING:
            self._num_left_out += 1
            return
        self._waiting.put(call)

    def _write(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # the process has ended, and has said why
            with self._process.stdin as pipe:
                while (call := self._waiting.get()) is not None:
                    print(json.dumps(call), file=pipe, flush=True)

    def _raise(self) -> None:
        """Raise `RuntimeError` if the process, which has ended, says that it failed, or says nothing."""
        assert self._process.stdout is not None
        lines = self._process.stdout.read().splitlines()
        self._process.stdout.close()
        told = parse_json(lines[-1].encode()) if lines else {"failure": f"its process ended: {self._process.returncode}"}
        if told:
            raise RuntimeError(str(told["failure"]))

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def main() -> None:
    """Keep the tracker that the first line of standard input names, until it is closed."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # which some batch systems send to all processes of a job
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the run decides when it ends
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the packages print
    try:
        name, run, settings, record = json.loads(sys.stdin.readline())
        tracker = TRACKERS[name](TrackedRun(run, settings, pathlib.Path(record)))
        tracker.open()
        for line in sys.stdin:
            method, *arguments = json.loads(line)
            if method == "close":
                tracker.close(is_failed=arguments[0])
            else:
                getattr(tracker, method)(*arguments)
        told: dict[str, str] = {}
    except Exception as error:  # of packages that are not ours, and of the network
        told = {"failure": f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MOST_LETTERS]}
    print(json.dumps(told), file=answer, flush=True)


if __name__ == "__main__":
    interpreter.leave_out_current_folder()
    main()
