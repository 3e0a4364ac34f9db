"""Publication of provisional parameters by the store: docs/protocol.md, "Provisional parameters"."""

from __future__ import annotations

from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.wire.layout import NUM_PROVISIONAL, StoreMemory, Word

_NOTHING = (-1, 0)  # no version, no arrivals


class ProvisionalPublisher:
    """Makes provisional parameters in the block and announces them. Used by the store's thread."""

    def __init__(self, store: ParameterStore, memory: StoreMemory) -> None:
        """`store` and `memory` stay the caller's."""
        self._store = store
        self._memory = memory
        self._number = 0  # of the newest provisional parameters
        self._published = _NOTHING  # their base version, and the number of their arrivals

    def publish(self) -> bool:
        """Make provisional parameters of all pending arrivals if the store wants them; return whether gradients were
        read."""
        pending = (self._store.version, len(self._store.pending))
        if not self._store.makes_provisional() or pending == self._published:  # equal if all new arrivals were refused
            return False
        layout, number = self._memory.layout, self._number + 1
        self._memory.store(Word.NEXT_PROVISIONAL, number)  # before the first byte, so that readers detect torn copies
        num_arrivals = self._store.make_provisional(number)
        self._memory.bring_out(layout.provisional_offset(number), 4 * layout.num_elements)
        place = number % NUM_PROVISIONAL
        self._memory.store(Word.PROVISIONAL_VERSION + place, self._store.version)
        self._memory.store(Word.PROVISIONAL_ARRIVALS + place, num_arrivals)
        self._memory.store(Word.PROVISIONAL, number)
        self._number, self._published = number, pending
        return True

    def withdraw(self) -> None:
        """Withdraw the provisional parameters, since their arrivals were refused afterwards: no worker reads them any
        more."""
        for place in range(NUM_PROVISIONAL):
            self._memory.store(Word.PROVISIONAL_VERSION + place, -1)
        self._published = _NOTHING
