"""Why ranks are to stop: the words STOP and FAILED, as everybody who waits reads them."""

from __future__ import annotations

from hvd_async.errors import PeerError
from hvd_async.transport.layout import StopNotice, Word
from hvd_async.transport.window import Window


def read_notice(window: Window) -> StopNotice | None:
    """Return what the run's stop word says. Raises `PeerError` if a rank has failed, which that rank reports."""
    stop, failed = window.load_words(Word.STOP, 2)
    if failed:
        raise PeerError(f"rank {failed - 1} failed; its message says why", is_reported=True)
    return StopNotice.from_word(stop)


def failed_rank(window: Window) -> int | None:
    """Return the rank that announced its failure, or None."""
    failed = window.load(Word.FAILED)
    return failed - 1 if failed else None


def announce_failure(window: Window, rank: int) -> None:
    """Tell all ranks that `rank` failed: those who wait end with `PeerError`, the store saves what it has first."""
    window.store(Word.FAILED, rank + 1)
    window.ring(Word.STORE_BELL)
