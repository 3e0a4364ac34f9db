"""Why ranks are to stop: the words STOP and FAILED, as everybody who waits reads them."""

from __future__ import annotations

from hvd_async.errors import PeerError
from hvd_async.store.wire.layout import StopNotice, StoreWindow, Word

_LOST = 1 << 40  # beside the rank, and 1, in FAILED


def read_notice(window: StoreWindow) -> StopNotice | None:
    """Return what the run's stop word says. Raises `PeerError` if a rank has failed, which that rank reports."""
    stop, failed = window.load_words(Word.STOP, 2)
    if failed:
        raise _error(failed)
    return StopNotice.from_word(stop)


def announce_failure(window: StoreWindow, rank: int, *, is_state_lost: bool = False) -> None:
    """Tell all ranks that `rank` failed: those who wait end with `PeerError`, the store saves what it has first.

    `is_state_lost`: what failed held a part of the parameters.
    """
    window.store(Word.FAILED, rank + 1 | (_LOST if is_state_lost else 0))
    window.ring(Word.STORE_BELL)


def check_state(window: StoreWindow) -> None:
    """Raise `PeerError` if a rank has failed that held a part of the parameters."""
    failed = window.load(Word.FAILED)
    if failed & _LOST:
        raise _error(failed)


def _error(failed: int) -> PeerError:
    rank, is_state_lost = (failed & ~_LOST) - 1, bool(failed & _LOST)
    return PeerError(f"rank {rank} failed; its message says why", is_reported=True, is_state_lost=is_state_lost)
