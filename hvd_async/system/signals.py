"""Signals that ask a process to stop: handlers for the duration of a block, and forwarding to another process."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

# Batch systems announce the end of a job by a configurable signal, usually SIGUSR1; a closed terminal sends SIGHUP.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@contextlib.contextmanager
def handling(numbers: Sequence[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call `handler` for each of the signals inside the block, then restore the previous handlers. Main thread only.

    An ignored SIGHUP stays ignored, as nohup asks. An ignored SIGINT does not: a shell makes background commands ignore it
    only because of Ctrl-C at the terminal, and a SIGINT that is sent to them counts.
    """
    is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    before = {number: signal.signal(number, handler) for number in numbers if not (is_nohup and number == signal.SIGHUP)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Hold back the signals that ask to stop inside the block: this process gets them after it, and a process that is started in
    the block never does, unless it asks for them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class SignalForwarder:
    """Forwarder of signals that ask this process to stop, to a process that it starts.

    Attributes:
        received: signals received so far, each with its time on the monotonic clock.
    """

    def __init__(self, translate: Callable[[int, bool], int | None]) -> None:
        """Prepare forwarding. `translate(number, is_repeated)` returns the signal to send for signal `number`, None for
        none; `is_repeated`: another signal came before it."""
        self.received: list[tuple[int, float]] = []
        self._translate = translate
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    @contextlib.contextmanager
    def forwarding(self) -> Iterator[None]:
        """Forward inside the block, in which the process must be started: a signal that came after the start but before
        the handler would leave the process behind. Main thread only."""
        with handling(STOP_SIGNALS, self._handle):
            yield

    def attach(self, process: subprocess.Popen[bytes]) -> None:
        """Forward to `process`, beginning with the signals that came before it was started."""
        self._process = process
        for number in self._early:
            process.send_signal(number)

    def _handle(self, number: int, _: FrameType | None) -> None:
        wanted = self._translate(number, bool(self.received))
        self.received.append((number, time.monotonic()))
        if wanted is None:
            return
        if self._process is None:
            self._early.append(wanted)
        else:
            self._process.send_signal(wanted)
