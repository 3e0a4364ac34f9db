"""Provisional parameters as the store publishes them: docs/protocol.md, "Provisional parameters"."""

from __future__ import annotations

from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.wire.layout import NUM_PROVISIONAL, StoreMemory, Word

_NOTHING = (-1, 0)  # no version, no arrivals


class ProvisionalPublisher:
    """Makes provisional parameters in the block, and says which are there. Used by the store's thread."""

    def __init__(self, store: ParameterStore, memory: StoreMemory) -> None:
        """Both stay the caller's."""
        self._store = store
        self._memory = memory
        self._number = 0  # of those that were made last
        self._published = _NOTHING  # the version below them, and their arrivals

    def publish(self) -> bool:
        """Make provisional parameters of all that is pending, where there are to be any; whether gradients were read for it."""
        pending = (self._store.version, len(self._store.pending))
        if not self._store.makes_provisional() or pending == self._published:  # equal where all that came was refused
            return False
        layout, number = self._memory.layout, self._number + 1
        self._memory.store(Word.NEXT_PROVISIONAL, number)  # before the first byte: whoever reads there now is told
        num_arrivals = self._store.make_provisional(number)
        self._memory.bring_out(layout.provisional_offset(number), 4 * layout.num_elements)
        place = number % NUM_PROVISIONAL
        self._memory.store(Word.PROVISIONAL_VERSION + place, self._store.version)
        self._memory.store(Word.PROVISIONAL_ARRIVALS + place, num_arrivals)
        self._memory.store(Word.PROVISIONAL, number)
        self._number, self._published = number, pending
        return True

    def withdraw(self) -> None:
        """Let no worker read them any more: their arrivals were refused afterwards."""
        for place in range(NUM_PROVISIONAL):
            self._memory.store(Word.PROVISIONAL_VERSION + place, -1)
        self._published = _NOTHING
