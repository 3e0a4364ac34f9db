"""Evaluations while a run trains: the store announces snapshots that are on the disk, workers claim them and report results."""

from __future__ import annotations

from collections.abc import Iterable

from hvd_async.store.observer import Observer
from hvd_async.store.wire.layout import MAX_STATISTICS, StoreWindow, Word, WorkerWord
from hvd_async.transport.block import word_to_float


class EvaluationDesk:
    """The store's side; `StoreClient.take_evaluation` and `report_evaluation` are a worker's. Used by the store's thread."""

    def __init__(self, window: StoreWindow, observer: Observer) -> None:
        """Both stay the caller's."""
        self._window = window
        self._observer = observer
        self._num_taken = [0] * window.layout.num_workers

    def announce(self) -> None:
        """Tell the workers how many snapshots are there to be evaluated."""
        self._window.store(Word.EVALUATIONS_DUE, self._observer.num_evaluations_due())

    def take(self, workers: Iterable[int]) -> bool:
        """Announce what is due, and hand results that `workers` reported to the observer; whether there were any."""
        self.announce()
        is_busy = False
        for worker in workers:
            if not self.has_open(worker):
                continue
            words = self._window.load_words(self._word(worker, WorkerWord.STATISTICS), MAX_STATISTICS)
            version = self._window.load(self._word(worker, WorkerWord.EVALUATED_VERSION))
            self._num_taken[worker] += 1
            self._window.store(self._word(worker, WorkerWord.EVALUATION_TAKEN), self._num_taken[worker])
            self._observer.evaluated(version, [word_to_float(word) for word in words])
            is_busy = True
        return is_busy

    def has_open(self, worker: int) -> bool:
        """Whether `worker` has reported a result that was not taken yet."""
        return self._window.load(self._word(worker, WorkerWord.EVALUATED)) != self._num_taken[worker]

    def _word(self, worker: int, word: int) -> int:
        return self._window.layout.worker_word(worker, word)
