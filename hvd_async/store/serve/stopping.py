"""How the store's server stops a run: it passes requests on, and waits for the workers, but not for ever."""

from __future__ import annotations

import time
from collections.abc import Set

from hvd_async.errors import PeerError
from hvd_async.store.wire.layout import StoreMemory, Word
from hvd_async.store.wire.stop import StopNotice, read_stop


class StopTimeoutError(PeerError):
    """Raised if some ranks did not answer a request to stop; the work of the others can be saved."""


def is_stopped(notice: StopNotice | None) -> bool:
    """Whether the run is stopped before its end."""
    return notice is not None and not notice.is_end


def is_too_late(notice: StopNotice | None) -> bool:
    """Whether the run has reached its end, so that gradients come too late."""
    return notice is not None and notice.is_end


class StopDesk:
    """The store's side of the stop word. Used by one thread."""

    def __init__(self, memory: StoreMemory, timeout_seconds: float) -> None:
        """`timeout_seconds`: how long workers may take to answer a request to stop."""
        self._memory = memory
        self._timeout_seconds = timeout_seconds
        self._since: float | None = None

    def pass_on(self, requested: StopNotice | None) -> StopNotice | None:
        """Return the run's stop notice; if there is none, set the one that is `requested`. Raises `PeerError` if a rank has
        failed."""
        notice = read_stop(self._memory)
        if notice is None and requested is not None:
            before = self._memory.compare_swap(Word.STOP, 0, requested.to_word())  # the first request counts
            notice = StopNotice.from_word(before) or requested
        if is_stopped(notice) and self._since is None:
            self._since = time.monotonic()
        return notice

    def check(self, present: Set[int]) -> None:
        """Raise `StopTimeoutError` if workers are still `present` when the time is over."""
        if self._since is not None and time.monotonic() - self._since > self._timeout_seconds:
            silent = ", ".join(map(str, sorted(present)))
            raise StopTimeoutError(
                f"worker {silent} did not answer a request to stop for {self._timeout_seconds:.0f} s"
                " (strategy.stop_timeout_seconds); the store's state is saved"
            )
