"""Batches that a worker claims and holds. The store's side, which gives those of the dead out again, is `returns`."""

from __future__ import annotations

from hvd_async.store.ledger import ClaimOrder
from hvd_async.store.wire.layout import CLAIMING, MAX_HELD, StoreWindow, Word, WorkerWord


class Claims:
    """The batches that one worker holds, each in one of its words, where the store finds them if the worker dies. Used by one
    thread.

    A word keeps a batch that was pushed until another is claimed in its place, since the store knows that it has arrived.
    """

    def __init__(self, window: StoreWindow, worker: int, claim_order: ClaimOrder) -> None:
        """`window` reaches shard 0; `worker` holds nothing yet."""
        self._window = window
        self._first_word = window.layout.worker_word(worker, WorkerWord.HELD)
        self._claim_order = claim_order
        self._held: dict[int, int] = {}  # the place of each batch among the words
        self._free_places = list(reversed(range(MAX_HELD)))

    def claim(self) -> int:
        """Claim a batch that another worker returned, or the next one; return its number."""
        place = self._begin()
        batch = self._take_returned()
        if batch is None:
            batch = self._claim_order.batch(self._window.fetch_add(Word.CLAIMS, 1))
        self._hold(batch, place)
        return batch

    def claim_returned(self) -> int | None:
        """Claim a batch that another worker returned; None if there is none."""
        place = self._begin()
        batch = self._take_returned()
        if batch is None:
            self._free(place)
        else:
            self._hold(batch, place)
        return batch

    def note_pushed(self, batch: int) -> None:
        """Hold `batch` no more, if this worker does: it was pushed, perhaps with those of the node."""
        place = self._held.pop(batch, None)
        if place is not None:
            self._free_places.append(place)

    def let_go(self, batch: int) -> None:
        """Hold `batch` no more, which this worker does: there is none of this number."""
        self._free(self._held.pop(batch))

    def _begin(self) -> int:
        """Say that this worker is claiming: if its process dies before it says what it got, the store knows that there may be a
        batch of which it knows nothing."""
        place = self._free_places.pop()
        self._window.store(self._first_word + place, CLAIMING)
        self._window.flush()
        return place

    def _hold(self, batch: int, place: int) -> None:
        self._held[batch] = place
        self._window.store(self._first_word + place, batch + 1)

    def _free(self, place: int) -> None:
        self._window.store(self._first_word + place, 0)
        self._free_places.append(place)

    def _take_returned(self) -> int | None:
        given, taken = self._window.load_words(Word.GIVEN_AGAIN, 2)
        while taken < given:
            batch = self._window.load(self._window.layout.given_word(taken))
            before = self._window.compare_swap(Word.TAKEN_AGAIN, taken, taken + 1)
            if before == taken:
                return batch
            given, taken = self._window.load_words(Word.GIVEN_AGAIN, 2)
        return None
