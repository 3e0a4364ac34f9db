"""Batches that workers held when they left or died, which the store gives out again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from hvd_async.store.ledger import ClaimOrder
from hvd_async.store.wire.layout import CLAIMING, MAX_HELD, NUM_RETURNS, StoreMemory, Word, WorkerWord


class Returns:
    """The store's side of the ring in which returned batches are given out. Used by one thread.

    A worker claims from the ring before it claims a new batch. A place of the ring is written again only after its batch was
    taken.
    """

    def __init__(self, memory: StoreMemory, claim_order: ClaimOrder, num_batches: int | None) -> None:
        """`memory` is the block of shard 0. `num_batches`: of the whole run, if they bound it."""
        self._memory = memory
        self._claim_order = claim_order
        self._num_batches = num_batches
        self._given: list[int] = []
        self._queue: deque[int] = deque()
        self._may_lack_claims = False

    def take_from(self, worker: int, has_arrived: Callable[[int], bool]) -> list[int]:
        """Take back the batches that `worker`, which has left or is dead, holds and that have not arrived; return them."""
        held = self._held_by(worker)
        self._may_lack_claims |= CLAIMING in held
        batches = sorted(word - 1 for word in held if word not in (0, CLAIMING))
        batches = [batch for batch in batches if self._exists(batch) and not has_arrived(batch)]
        self._queue += batches
        return batches

    def look_again(self) -> None:
        """Let `find_lost_claims` look once more: a worker may have claimed a batch after it was dismissed."""
        self._may_lack_claims = True

    def find_lost_claims(self, living: Collection[int], has_arrived: Callable[[int], bool]) -> list[int]:
        """Take back what a worker claimed that died before it could say which batch; return the batches.

        Tried again later while one of the `living` workers claims. Read in this order: the number of claims, what the living
        hold, then `has_arrived`, which looks at the slots and at the store; a batch moves in the same direction.
        """
        if not self._may_lack_claims:
            return []
        num_claims = self._memory.load(Word.CLAIMS)
        held = {word for worker in living for word in self._held_by(worker)}
        if CLAIMING in held:
            return []
        self._may_lack_claims = False
        known = {word - 1 for word in held if word} | set(self.open())
        batches = [batch for batch in map(self._claim_order.batch, range(num_claims)) if batch not in known]
        lost = [batch for batch in batches if self._exists(batch) and not has_arrived(batch)]
        self._queue += lost
        return lost

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

    def is_nothing_open(self) -> bool:
        """Whether no returned batch is left, and none is being looked for."""
        return not self._queue and not self._may_lack_claims and self._num_taken() == len(self._given)

    def _num_taken(self) -> int:
        return self._memory.load(Word.TAKEN_AGAIN) if self._given else 0

    def _held_by(self, worker: int) -> list[int]:
        return self._memory.load_words(self._memory.layout.worker_word(worker, WorkerWord.HELD), MAX_HELD)

    def _exists(self, batch: int) -> bool:
        return self._num_batches is None or batch < self._num_batches
