"""Why a run stops: the words STOP and FAILED, as every rank that waits reads them."""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

from hvd_async.errors import PeerError
from hvd_async.store.wire.layout import StoreWindow, Word

_LOST = 1 << 40  # beside the rank, and 1, in FAILED


class StopKind(enum.IntEnum):
    """Why workers are to stop."""

    FINISHED = 1
    SIGNAL = 2
    ORPHANED = 3


@dataclass(frozen=True)
class StopNotice:
    """What the stop word says: why, who said it, and for a signal which."""

    kind: StopKind
    rank: int
    signal_number: int = 0

    @property
    def is_end(self) -> bool:
        """Whether the run has come to its end; else it was stopped before, to go on later."""
        return self.kind is StopKind.FINISHED

    def __str__(self) -> str:
        """Return what stopped the run, in words."""
        if self.kind is StopKind.SIGNAL:
            return f"{signal.Signals(self.signal_number).name} on rank {self.rank}"
        return "its end" if self.is_end else f"the end of its launcher, as seen by rank {self.rank}"

    def to_json(self) -> dict[str, object]:
        """Plain data for a summary."""
        name = signal.Signals(self.signal_number).name if self.kind is StopKind.SIGNAL else None
        return {"kind": self.kind.name.lower(), "rank": self.rank, "signal": name}

    def to_word(self) -> int:
        """The notice as a control word; never 0."""
        return self.kind << 48 | self.signal_number << 32 | self.rank

    @classmethod
    def from_word(cls, word: int) -> StopNotice | None:
        """The notice that `word` holds, or None for 0: go on."""
        if word == 0:
            return None
        return cls(StopKind(word >> 48), rank=word & 0xFFFFFFFF, signal_number=word >> 32 & 0xFFFF)


def read_stop(window: StoreWindow) -> StopNotice | None:
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
