"""Evaluations during training: the store announces snapshots on disk, workers claim them and report results."""

from __future__ import annotations

from collections.abc import Collection

from hvd_async.store.observer import Observer
from hvd_async.store.wire.evaluation_words import read_evaluation
from hvd_async.store.wire.layout import StoreMemory, Word, WorkerWord
from hvd_async.transport.word_column import WordColumn


class EvaluationDesk:
    """The store's side of evaluations; `StoreClient` has a worker's side. Used by the store's thread."""

    def __init__(self, window: StoreMemory, observer: Observer) -> None:
        """`window` and `observer` stay the caller's."""
        self._window = window
        self._observer = observer
        self._num_taken = [0] * window.layout.num_workers
        self._reported = WordColumn(window, *window.layout.worker_column(WorkerWord.EVALUATED), self._num_taken)

    def announce(self) -> None:
        """Tell the workers how many snapshots are due for evaluation."""
        self._window.store(Word.EVALUATIONS_DUE, self._observer.num_evaluations_due())

    def take(self, workers: Collection[int]) -> bool:
        """Announce due evaluations, and pass results of `workers` to the observer; return whether there were any results."""
        self.announce()
        is_busy = False
        for worker in self._reported.changed():
            if worker not in workers or not self.has_open(worker):
                continue
            version, statistics = read_evaluation(self._window, worker)
            self._num_taken[worker] += 1
            self._reported.know(worker, self._num_taken[worker])
            self._window.store(self._word(worker, WorkerWord.EVALUATION_TAKEN), self._num_taken[worker])
            self._observer.evaluated(version, statistics)
            is_busy = True
        return is_busy

    def has_open(self, worker: int) -> bool:
        """Whether `worker` has reported a result that is not taken yet."""
        return self._window.load(self._word(worker, WorkerWord.EVALUATED)) != self._num_taken[worker]

    def _word(self, worker: int, word: int) -> int:
        return self._window.layout.worker_word(worker, word)
