"""Requests to stop: signals, and the end of the launcher. The training loop reads them between steps.

mpirun kills its ranks within a second after it gets SIGTERM or Ctrl-C, but passes SIGUSR1 on to all ranks on all hosts. A
closed terminal sends SIGHUP. If mpirun itself is killed, the ranks get no signal, only another parent process.
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
from hvd_async.transport.segments import remove_segments

_LOOK_SECONDS = 0.5


class StopRequest:
    """Remembers the first request to stop this process.

    Before `defer` there is nothing to save, and preparation may take long: a signal raises `StoppedBySignal` in the main
    thread at once.
    """

    def __init__(self) -> None:
        """Install no handlers yet."""
        self.rank = 0
        """Rank of this process, for the notice; to be set once it is known."""
        self.limit_seconds = 0.0
        """How long this process may continue after its launcher has gone; may be changed while the launcher lives."""
        self._is_deferred = False
        self._notice: tuple[StopKind, int] | None = None
        self._is_over = threading.Event()

    def notice(self) -> StopNotice | None:
        """Return the request, if there is one."""
        return None if self._notice is None else StopNotice(self._notice[0], self.rank, self._notice[1])

    def defer(self) -> None:
        """Only remember requests from now on, for callers of `notice` that can stop."""
        self._is_deferred = True

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block. Used in the main thread.

        A second Ctrl-C ends the process as usual; other signals may repeat, since batch systems send them again. A signal
        that is ignored, such as SIGHUP under nohup, stays ignored."""
        with handling(STOP_SIGNALS, self._handle):
            yield

    @contextlib.contextmanager
    def watching_launcher(self, limit_seconds: float) -> Iterator[None]:
        """Request a stop inside the block when the parent process ends, since a launcher outlives its ranks.

        MPI may wait forever for a rank or a launcher that has gone, so this process ends itself `limit_seconds` later.
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
            signal.default_int_handler(number, None)  # second Ctrl-C: do not wait for the end of the step
        self._notice = self._notice or (StopKind.SIGNAL, number)
        if not self._is_deferred:
            name = signal.Signals(number).name
            raise StoppedBySignal(f"stopped by {name} before training began; there is nothing to save", number)

    def _watch(self, launcher: int) -> None:
        while os.getppid() == launcher:
            if self._is_over.wait(_LOOK_SECONDS):
                return
        if not self._is_deferred:
            remove_segments()
            os._exit(128 + signal.SIGTERM)  # there is nothing to save
        self._notice = (StopKind.ORPHANED, 0)  # replaces any earlier request: no other rank may be waited for any more
        gone = time.monotonic()
        while time.monotonic() - gone < self.limit_seconds:
            if self._is_over.wait(_LOOK_SECONDS):
                return
        remove_segments()
        os._exit(128 + signal.SIGTERM)
