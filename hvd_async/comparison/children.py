"""Processes that runs are computed with: none of them outlives the block that they are started in."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from hvd_async.errors import StoppedBySignal

# Until a process that was asked to end is asked again: it saves everything first, on all its ranks.
_PATIENCE_SECONDS = 60.0
# Until it is killed then: asked twice, `launch` has its ranks killed, which would outlive it.
_SECOND_PATIENCE_SECONDS = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Children:
    """Processes that end, at the latest, with the block of this context manager. Threads may run several at a time."""

    def __init__(self, inherited: Sequence[int] = ()) -> None:
        """There are none. `inherited`: file descriptors that they keep open as long as they live."""
        self._inherited = inherited
        self._running: set[subprocess.Popen[str]] = set()
        self._is_over = False
        self._lock = threading.Lock()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_over = True
            left = list(self._running)
        for process in left:
            process.terminate()
        for process in left:
            try:
                process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.terminate()
                try:
                    process.wait(_SECOND_PATIENCE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()

    def run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
        """`hvd-async` with `arguments`; None if it was ended, or not begun, since the block was left. Blocks.

        It is told to stop as well if this process is killed.
        """
        command = [sys.executable, "-m", "hvd_async.tied", str(os.getpid()), *arguments]  # a list, no shell
        with self._lock:
            if self._is_over:
                return None
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                pass_fds=self._inherited,
                start_new_session=True,  # a terminal's Ctrl-C is for us, who pass it on
            )
            self._running.add(process)
        output, errors = process.communicate()
        with self._lock:
            self._running.discard(process)
            return None if self._is_over else subprocess.CompletedProcess(command, process.returncode, output, errors)


@contextlib.contextmanager
def stopping_on_signals(message: str) -> Iterator[None]:
    """Raise `StoppedBySignal` with `message` at the first Ctrl-C or SIGTERM inside the block. In the main thread."""

    def stop(number: int, _: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # the processes are being ended: a second one must not prevent it
        raise StoppedBySignal(f"{message}: stopped by {signal.Signals(number).name}", number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
