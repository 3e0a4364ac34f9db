"""The store's account of the slots: which pushes wait, were taken in and were read, and whom the store must tell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from hvd_async.store.arrival import Arrival
from hvd_async.store.wire import arrival_words
from hvd_async.store.wire.layout import IDLE, SlotWord, StoreMemory
from hvd_async.transport.word_column import WordColumn

_ANNOUNCED = (SlotWord.BASE_VERSION, SlotWord.NEXT_BASE_VERSION)


class SlotBook:
    """Counts of pushes per slot, and the words of the slots that the store writes. Used by the store's thread."""

    def __init__(self, memory: StoreMemory, slot_of: Callable[[int], int]) -> None:
        """`memory` is the block of shard 0. `slot_of` returns the slot of a worker, which the workers of a node may share."""
        self._memory = memory
        self._layout = memory.layout
        self._slot_of = slot_of
        self._drained = [0] * self._layout.slots  # number of pushes taken in, per slot
        self._pushed = WordColumn(memory, *self._layout.slot_column(SlotWord.PUSHED), self._drained)
        self._to_free: set[int] = set()  # slots that were taken in, and whose FREED has not risen yet
        self._to_drain: list[int] = []  # slots that were taken in, and whose DRAINED has not risen yet
        self._last_push: dict[int, tuple[int, int]] = {}  # by worker: slot and number of the last push that was taken in
        self._closed: set[int] = set()  # slots of workers that are dismissed

    def open_all(self) -> None:
        """Let no slot announce anything before the store is ready."""
        for slot in range(self._layout.slots):
            self._withdraw_announced(slot)

    # --- Pushes that wait. --------------------------------------------------------------------------------------------

    def waits(self, slot: int) -> bool:
        """Whether a push waits in `slot` that counts."""
        return slot not in self._closed and self._get(slot, SlotWord.PUSHED) != self._drained[slot]

    def with_news(self, first: int) -> list[int]:
        """Return the slots in which a push seems to wait, from `first` on, and then those before it; see `WordColumn.changed`."""
        found = self._pushed.changed()
        return [slot for slot in found if slot >= first] + [slot for slot in found if slot < first]

    def arrivals(self, slot: int) -> list[Arrival]:
        """Return the arrivals of the last push into `slot`."""
        return arrival_words.read_arrivals(self._memory, slot)

    def has_waiting(self, worker: int) -> bool:
        """Whether a gradient of `worker` waits in a slot."""
        return any(arrival.worker == worker for arrival in self._waiting())

    def has_batch(self, batch: int) -> bool:
        """Whether the gradient of `batch` waits in a slot."""
        return any(arrival.batch == batch for arrival in self._waiting())

    def is_wanted(self, slots: Collection[int]) -> bool:
        """Whether the worker of one of `slots`, which are not read yet, wants to push again."""
        return any(self._get(slot, SlotWord.WANTED) > self._drained[slot] for slot in slots)

    def under_way(self) -> list[int]:
        """Return the base versions of gradients that are being computed or wait."""
        versions = []
        for slot in self._open():
            # Read in this order, since a worker fills its slot before it announces another version.
            versions += [version for word in _ANNOUNCED if (version := self._get(slot, word)) != IDLE]
            if self.waits(slot):
                versions.append(self._get(slot, SlotWord.PUSHED_BASE_VERSION))
        return versions

    # --- What the store tells the workers. ----------------------------------------------------------------------------

    def take_in(self, slot: int, arrivals: Sequence[Arrival]) -> None:
        """Note that the store has decided on the push with `arrivals` in `slot`."""
        self._drained[slot] += 1
        self._pushed.know(slot, self._drained[slot])
        self._to_drain.append(slot)
        self._to_free.add(slot)
        for arrival in arrivals:
            self._last_push[arrival.worker] = slot, self._drained[slot]

    def release(self, arrival: Arrival) -> None:
        """Tell the worker that pushed `arrival` that its outcome is known."""
        if arrival.worker in self._last_push:  # else the arrival was pending in a checkpoint, and no worker waits
            slot, number = self._last_push[arrival.worker]
            self._set(slot, SlotWord.RELEASED, number)
            self.ring(slot)

    def free(self, unread: Collection[int]) -> None:
        """Free every slot that was taken in and is not among the `unread`."""
        for slot in sorted(self._to_free.difference(unread)):
            self._to_free.discard(slot)
            self._set(slot, SlotWord.FREED, self._drained[slot])
            self.ring(slot)

    @property
    def is_any_to_tell(self) -> bool:
        """Whether pushes were taken in whose workers do not know it yet."""
        return bool(self._to_drain)

    def tell_drained(self) -> None:
        """Raise DRAINED of the slots that were taken in: the next pull of a worker that waits for it contains its
        gradient."""
        for slot in self._to_drain:
            self._set(slot, SlotWord.DRAINED, self._drained[slot])
            self.ring(slot)
        self._to_drain.clear()

    def ring(self, slot: int) -> None:
        """Wake the owner of `slot`."""
        self._memory.ring(self._layout.slot_word(slot, SlotWord.BELL))

    def ring_all(self) -> None:
        """Wake the owners of all slots."""
        for slot in range(self._layout.slots):
            self.ring(slot)

    # --- Slots of workers that die, and of those that take their places. ----------------------------------------------

    def close(self, slot: int) -> None:
        """Ignore `slot`, whose worker is dismissed, from now on."""
        if slot not in self._closed:
            self._closed.add(slot)
            self._withdraw_announced(slot)

    def vacate(self, worker: int, pending: Sequence[Arrival]) -> bool:
        """Ignore what `worker`, whose process is gone, wrote last into its slot; return whether nothing of it is `pending`, so
        that the slot may have another owner. Slots that several workers share have none."""
        slot = self._slot_of(worker)
        users = [other for other in range(self._layout.num_workers) if self._slot_of(other) == slot]
        if users != [worker] or any(arrival.worker == worker for arrival in pending):
            return False
        pushed = self._get(slot, SlotWord.PUSHED)
        self._drained[slot] = pushed
        self._to_free.discard(slot)
        self._pushed.know(slot, pushed)
        self._last_push.pop(worker, None)
        self._withdraw_announced(slot)
        for word in (SlotWord.WANTED, SlotWord.DRAINED, SlotWord.FREED, SlotWord.RELEASED):
            self._set(slot, word, pushed)
        return True

    def reopen(self, worker: int) -> None:
        """Count the pushes of a process that has the place of `worker` from now on, and wake it."""
        slot = self._slot_of(worker)
        self._closed.discard(slot)
        self.ring(slot)

    # --- Words. -------------------------------------------------------------------------------------------------------

    def _open(self) -> list[int]:
        return [slot for slot in range(self._layout.slots) if slot not in self._closed]

    def _waiting(self) -> list[Arrival]:
        return [arrival for slot in self._open() if self.waits(slot) for arrival in self.arrivals(slot)]

    def _withdraw_announced(self, slot: int) -> None:
        for word in _ANNOUNCED:
            self._set(slot, word, IDLE)

    def _get(self, slot: int, word: int) -> int:
        return self._memory.load(self._layout.slot_word(slot, word))

    def _set(self, slot: int, word: int, value: int) -> None:
        self._memory.store(self._layout.slot_word(slot, word), value)
