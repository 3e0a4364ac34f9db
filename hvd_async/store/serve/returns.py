"""Batches that workers had claimed when they left, which the store gives out again."""

from __future__ import annotations

from collections import deque

from hvd_async.store.wire.layout import NUM_RETURNS, StoreMemory, Word, WorkerWord


class Returns:
    """The store's side of the ring in which returned batches are given out. Used by one thread.

    A worker claims from the ring before it claims a new batch. A place of the ring is written again only after its batch was
    taken.
    """

    def __init__(self, memory: StoreMemory) -> None:
        """`memory` is the block of shard 0."""
        self._memory = memory
        self._given: list[int] = []
        self._queue: deque[int] = deque()

    def take_from(self, worker: int) -> None:
        """Take the batches that `worker`, which has left, returned."""
        layout = self._memory.layout
        first = layout.worker_word(worker, WorkerWord.RETURNED)
        for number in range(self._memory.load(first)):
            self._queue.append(self._memory.load(first + 1 + number))

    def give(self) -> bool:
        """Write as many batches into the ring as it has room for; return whether there were any."""
        taken, is_any = self._num_taken(), False
        while self._queue and len(self._given) - taken < NUM_RETURNS:
            batch = self._queue.popleft()
            self._memory.store(self._memory.layout.given_word(len(self._given)), batch)
            self._given.append(batch)
            is_any = True
        if is_any:
            self._memory.store(Word.GIVEN_AGAIN, len(self._given))  # last: workers read the rest only after this
        return is_any

    def open(self) -> list[int]:
        """Return the batches that no worker has taken yet."""
        if not self._given and not self._queue:
            return []
        return [*self._given[self._num_taken() :], *self._queue]

    def are_all_taken(self) -> bool:
        """Whether no returned batch is left."""
        return not self._queue and self._num_taken() == len(self._given)

    def _num_taken(self) -> int:
        return self._memory.load(Word.TAKEN_AGAIN) if self._given else 0
