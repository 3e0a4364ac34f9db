"""Workers without which the store goes on."""

from __future__ import annotations

from collections.abc import Set

from hvd_async.errors import PeerError
from hvd_async.store.serve.liveness import WorkerWatch
from hvd_async.store.wire.layout import StoreMemory, Word, WorkerState, WorkerWord


class LostWorkers:
    """The workers that have died or failed, as the store's server learns of them. Used by one thread."""

    def __init__(self, memory: StoreMemory, watch: WorkerWatch, least_workers: int | None) -> None:
        """The run goes on while at least `least_workers` are left; None: it ends with the first that dies."""
        self.dead: dict[int, str] = {}
        """Why each worker counts as dead that does."""
        self._memory = memory
        self._watch = watch
        self._least_workers = least_workers
        self._num_dismissed = 0

    def look(self, present: Set[int]) -> None:
        """Look for more dead among the workers that are `present`. Raises `PeerError` if the run cannot go on without them."""
        if self._least_workers is None:
            self._watch.check(present)
            return
        living = present - self.dead.keys()
        failed = {worker for worker in living if self._has_failed(worker)}
        found = self._watch.find_dead(living) | {
            worker: f"worker {worker} failed; its message says why" for worker in failed
        }
        self.dead |= found
        num_left = len(living - found.keys())
        if self.dead.keys() & present and num_left < self._least_workers:
            raise PeerError(
                f"{'; '.join(self.dead.values())}: {num_left} workers are left, expected at least {self._least_workers}"
                " (strategy.min_workers); the store's state is saved"
            )

    def dismiss(self, worker: int) -> None:
        """End the process of `worker`, which is dead or counts so, if it lives here; elsewhere it is told before it pushes."""
        self._memory.store(self._memory.layout.worker_word(worker, WorkerWord.DISMISSED), 1)
        self._watch.end(worker)
        self._num_dismissed += 1
        self._memory.store(Word.NUM_LOST, self._num_dismissed)

    def _has_failed(self, worker: int) -> bool:
        return self._memory.load(self._memory.layout.worker_word(worker, WorkerWord.STATE)) == WorkerState.FAILED
