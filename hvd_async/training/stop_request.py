"""Requests to stop: signals, and the end of the launcher, which the training loop sees between steps.

mpirun kills its ranks within a second of a SIGTERM or Ctrl-C of its own, but passes SIGUSR1 on to all of them, on all hosts. A
closed terminal sends SIGHUP. Where mpirun itself is killed, nothing is sent at all: its ranks have another parent then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from hvd_async.errors import StoppedBySignal
from hvd_async.store.wire.stop import StopKind, StopNotice
from hvd_async.system.signals import STOP_SIGNALS, handling

_LOOK_SECONDS = 0.5


class StopRequest:
    """Remembers the first thing that asked this process to stop.

    Before `defer` there is nothing to save, and preparing may take long: a signal raises `StoppedBySignal` where it finds the
    main thread.
    """

    def __init__(self) -> None:
        """Listens to nothing yet."""
        self.rank = 0
        """Of this process, for the notice; to be set once it is known."""
        self.limit_seconds = 0.0
        """How long this process may go on when its launcher has gone; it may change as long as that is there."""
        self._is_deferred = False
        self._notice: tuple[StopKind, int] | None = None
        self._is_over = threading.Event()

    def notice(self) -> StopNotice | None:
        """Return what was asked for, if anything was."""
        return None if self._notice is None else StopNotice(self._notice[0], self.rank, self._notice[1])

    def defer(self) -> None:
        """From now on a request is remembered, for whoever asks for `notice` when it can stop."""
        self._is_deferred = True

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block. A second Ctrl-C ends the process as usual; other signals may repeat,
        as batch systems send them again. A signal that is ignored, as SIGHUP under nohup, stays so. In the main thread."""
        with handling(STOP_SIGNALS, self._handle):
            yield

    @contextlib.contextmanager
    def watching_launcher(self, limit_seconds: float) -> Iterator[None]:
        """Notice inside the block when the process that started this one ends: whoever launched ranks outlives them.

        MPI may wait for ever for a rank that has gone, or for its launcher: `limit_seconds` after that the process ends itself.
        """
        self.limit_seconds = limit_seconds
        self._is_over.clear()
        watcher = threading.Thread(target=self._watch, args=(os.getppid(),), name="hvd-async-launcher", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._is_over.set()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._notice is not None:
            signal.default_int_handler(number, None)  # asked twice by hand: do not wait for the end of the step
        self._notice = self._notice or (StopKind.SIGNAL, number)
        if not self._is_deferred:
            name = signal.Signals(number).name
            raise StoppedBySignal(f"stopped by {name} before training began; there is nothing to save", number)

    def _watch(self, launcher: int) -> None:
        while os.getppid() == launcher:
            if self._is_over.wait(_LOOK_SECONDS):
                return
        if not self._is_deferred:
            os._exit(128 + signal.SIGTERM)  # there is nothing to save
        self._notice = (StopKind.ORPHANED, 0)  # whatever was asked for before: nobody may be waited for any more
        gone = time.monotonic()
        while time.monotonic() - gone < self.limit_seconds:
            if self._is_over.wait(_LOOK_SECONDS):
                return
        os._exit(128 + signal.SIGTERM)
