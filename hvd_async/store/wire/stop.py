"""The words STOP and FAILED, which say why a run stops and which every waiting rank reads."""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

from hvd_async.errors import PeerError
from hvd_async.store.wire.layout import StoreWindow, Word

_LOST = 1 << 40  # beside the rank, and 1, in FAILED


class StopKind(enum.IntEnum):
    """Reasons for workers to stop."""

    FINISHED = 1
    SIGNAL = 2
    ORPHANED = 3


@dataclass(frozen=True)
class StopNotice:
    """Contents of the stop word: the reason, the rank that requested the stop, and for a signal its number."""

    kind: StopKind
    rank: int
    signal_number: int = 0

    @property
    def is_end(self) -> bool:
        """Whether the run has reached its end; otherwise it was stopped early, to be resumed."""
        return self.kind is StopKind.FINISHED

    def __str__(self) -> str:
        """Return the reason in words."""
        if self.kind is StopKind.SIGNAL:
            return f"{signal.Signals(self.signal_number).name} on rank {self.rank}"
        return "its end" if self.is_end else f"the end of its launcher, as seen by rank {self.rank}"

    def to_json(self) -> dict[str, object]:
        """Return plain data for a summary."""
        name = signal.Signals(self.signal_number).name if self.kind is StopKind.SIGNAL else None
        return {"kind": self.kind.name.lower(), "rank": self.rank, "signal": name}

    def to_word(self) -> int:
        """Return the notice as a control word, which is never 0."""
        return self.kind << 48 | self.signal_number << 32 | self.rank

    @classmethod
    def from_word(cls, word: int) -> StopNotice | None:
        """Return the notice in `word`; None for 0, which means no stop."""
        if word == 0:
            return None
        return cls(StopKind(word >> 48), rank=word & 0xFFFFFFFF, signal_number=word >> 32 & 0xFFFF)


def read_stop(window: StoreWindow) -> StopNotice | None:
    """Return the run's stop notice, if any. Raises `PeerError` if a rank has failed; the failed rank reports the error."""
    stop, failed = window.load_words(Word.STOP, 2)
    if failed:
        raise _error(failed)
    return StopNotice.from_word(stop)


def announce_failure(window: StoreWindow, rank: int, *, is_state_lost: bool = False) -> bool:
    """Tell all ranks that `rank` failed: waiting ranks end with `PeerError`, the store after it has saved its state. Return
    whether it is the first to fail; otherwise the first one stays announced, unless only this one lost a part of the state.

    `is_state_lost`: the failed rank held a part of the parameters.
    """
    own = rank + 1 | (_LOST if is_state_lost else 0)
    found = window.compare_swap(Word.FAILED, 0, own)
    if found and is_state_lost and not found & _LOST:
        window.compare_swap(Word.FAILED, found, own)
    window.ring(Word.STORE_BELL)
    return found == 0


def check_state(window: StoreWindow) -> None:
    """Raise `PeerError` if a rank that held a part of the parameters has failed."""
    failed = window.load(Word.FAILED)
    if failed & _LOST:
        raise _error(failed)


def _error(failed: int) -> PeerError:
    rank, is_state_lost = (failed & ~_LOST) - 1, bool(failed & _LOST)
    return PeerError(f"rank {rank} failed; its message says why", is_reported=True, is_state_lost=is_state_lost)
