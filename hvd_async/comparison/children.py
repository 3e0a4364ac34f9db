"""Processes that runs are computed with: none of them outlives the block that they are started in."""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from hvd_async import interpreter
from hvd_async.errors import StoppedBySignal
from hvd_async.handlers import handling

# Until a process that was asked to end is asked again: it saves everything first, on all its ranks.
_PATIENCE_SECONDS = 60.0
# Until it is killed then: at a Ctrl-C after another signal `launch` has its ranks killed, which would outlive it.
_SECOND_PATIENCE_SECONDS = 10.0
# Batch systems announce the end of a job by a signal of one's choice, SIGUSR1 by custom.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_KEPT_CHARACTERS = 4096  # of the end of what a process says


class Children:
    """Processes that end, at the latest, with the block of this context manager. Threads may run several at a time."""

    def __init__(self, inherited: Sequence[int] = ()) -> None:
        """There are none. `inherited`: file descriptors that they keep open as long as they live."""
        self._inherited = inherited
        self._running: set[subprocess.Popen[str]] = set()
        self._is_over = False
        self._lock = threading.Lock()

    @property
    def is_over(self) -> bool:
        """Whether the block was left: nothing is begun any more."""
        return self._is_over

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
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(_SECOND_PATIENCE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()

    def run(self, arguments: Sequence[str], inherited: Sequence[int] = ()) -> subprocess.CompletedProcess[str] | None:
        """`hvd-async` with `arguments`; None if it was ended, or not begun, since the block was left. Blocks.

        It is told to stop as well if this process is killed, and keeps the descriptors `inherited` open beside those of all.
        """
        command = _tied(arguments)
        with self._lock:
            if self._is_over:
                return None
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                pass_fds=(*self._inherited, *inherited),
                start_new_session=True,  # a terminal's Ctrl-C is for us, who pass it on
            )
            self._running.add(process)
        output, errors = process.communicate()
        with self._lock:
            self._running.discard(process)
            return None if self._is_over else subprocess.CompletedProcess(command, process.returncode, output, errors)


def run_in_sight(arguments: Sequence[str], inherited: Sequence[int] = ()) -> subprocess.CompletedProcess[str]:
    """`hvd-async` with `arguments`, which says what it says where we do; the end of its errors is in the result too. Blocks, in
    the main thread; `inherited` as of `Children`.

    At Ctrl-C, SIGTERM and SIGUSR1 it is asked to end, and waited for: how long it may save is for the batch system to say, which
    kills in the end. Raises `StoppedBySignal` if it did end for that.
    """
    received: list[int] = []
    early: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        # Later ones are repetitions, as batch systems send them; only a person who asks again wants it at once.
        is_wanted = not received or number == signal.SIGINT
        passed_on = signal.SIGINT if received else signal.SIGTERM
        received.append(number)
        if is_wanted and running:
            running[0].send_signal(passed_on)
        elif is_wanted:
            early.append(passed_on)

    # Handlers first: a signal that found the process begun and no handler would leave it behind.
    with handling(_SIGNALS, pass_on):
        command = _tied(arguments)
        sys.stdout.flush()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=inherited, start_new_session=True
        )
        running.append(process)
        for number in early:
            process.send_signal(number)
        errors = _Echo(process)
        errors.start()
        status = process.wait()
        errors.join(_SECOND_PATIENCE_SECONDS)  # what it started may have outlived it, with the pipe open
    if received and status in {sign for number in _SIGNALS for sign in (128 + number, -number)}:
        name = signal.Signals(received[0]).name
        raise StoppedBySignal(f"compare: the same command goes on: stopped by {name}", received[0])
    return subprocess.CompletedProcess(command, status, "", errors.tail)


class _Echo(threading.Thread):
    """Writes to our stderr what comes from that of `process`, until it is closed, and keeps the end of it in `tail`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(name="hvd-async-echo", daemon=True)
        self._process = process
        self.tail = ""

    def run(self) -> None:
        assert self._process.stderr is not None
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        with self._process.stderr as stream:
            while chunk := os.read(stream.fileno(), 1 << 16):
                text = decoder.decode(chunk)
                self.tail = (self.tail + text)[-_KEPT_CHARACTERS:]
                with contextlib.suppress(OSError):  # nobody reads ours; the run is not to wait for that
                    sys.stderr.write(text)
                    sys.stderr.flush()


def _tied(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, *interpreter.flags(), "-m", "hvd_async.tied", str(os.getpid()), *arguments]  # a list, no shell


@contextlib.contextmanager
def stopping_on_signals(message: str) -> Iterator[None]:
    """Raise `StoppedBySignal` with `message` at the first Ctrl-C, SIGTERM or SIGUSR1 inside the block. In the main thread."""

    def stop(number: int, _: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # the processes are being ended: a second one must not prevent it
        raise StoppedBySignal(f"{message}: stopped by {signal.Signals(number).name}", number)

    with handling(_SIGNALS, stop):
        yield
