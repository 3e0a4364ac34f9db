"""The workers' side of a loss: who is dismissed, and how a worker says that it fails. `lost_workers` is the store's side."""

from __future__ import annotations

from hvd_async.errors import DismissedError
from hvd_async.store.wire.layout import SlotWord, StoreWindow, Word, WorkerState, WorkerWord


def say_failed(window: StoreWindow, worker: int) -> None:
    """Tell the store that `worker` has failed, and that its process is about to end. `window` reaches shard 0."""
    window.store(window.layout.worker_word(worker, WorkerWord.STATE), WorkerState.FAILED)
    window.ring(Word.STORE_BELL)


class Dismissals:
    """One worker's view. Used by one thread."""

    def __init__(self, window: StoreWindow, worker: int, slot: int) -> None:
        """`window` reaches shard 0; `worker` pushes into `slot`, perhaps with others."""
        self._window = window
        self._worker = worker
        self._settled = window.layout.slot_word(slot, SlotWord.SETTLED)

    def num_lost(self) -> int:
        """Return how many ranks of workers are dismissed."""
        return self._window.load(Word.NUM_LOST)

    def is_dismissed(self, worker: int) -> bool:
        """Whether `worker` was dismissed, at least if it is among the `num_lost` of an earlier call."""
        return self._window.load(self._window.layout.worker_word(worker, WorkerWord.DISMISSED)) != 0

    def num_settled(self) -> int:
        """Return how many lost workers the workers of this slot have settled."""
        return self._window.load(self._settled)

    def settle(self, number: int) -> None:
        """Tell the store that nothing of the first `number` lost workers can come into this slot any more that is not there."""
        self._window.store(self._settled, number)
        self._window.ring(Word.STORE_BELL)

    def check(self) -> None:
        """Raise `DismissedError` if the store takes this worker for dead: it must not push any more."""
        if self.is_dismissed(self._worker):
            raise DismissedError(
                f"worker {self._worker} was taken for dead, since it showed no sign of life for too long, and the others go on"
                " (strategy.worker_timeout_seconds, hang_timeout_seconds)"
            )
