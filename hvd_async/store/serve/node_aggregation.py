"""Node aggregation: the gradients of a node's workers are summed in shared memory; one push and one pull serve all of them.

A member that finds that all computing members of the node have contributed pushes and pulls, under a lock; usually this is
the last member to contribute. Members that evaluate or have left are not waited for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from hvd_async.store.arrival import Arrival
from hvd_async.store.serve.client import NO_BASE, Base, StoreClient
from hvd_async.store.wire import arrival_words
from hvd_async.store.wire.layout import IDLE, ArrivalWord, Layout, SlotWord, StoreMemory, Word, WorkerState, WorkerWord
from hvd_async.vectors import arithmetic

# The node's block has the layout of a store's block: a slot for each member, one published copy, the sum and the kept error.
# Some of the run's words have another meaning here.
_LOCK = Word.CLAIMS
_VERSION = Word.VERSION
_BASE = Word.PROVISIONAL  # two words: the fields of `Base` other than the version
_SUM, ERROR = 0, 1


def node_layout(size: int, num_members: int, has_error: bool) -> Layout:
    """Return the layout of a node's block for vectors of `size` elements."""
    return Layout(size, num_members, num_buffers=1, num_state_vectors=2 if has_error else 1)


class NodeAggregator:
    """One member's access to the aggregation of its node. Used by one thread.

    Every method may wait for the other members or the store. Raises `PeerError` as `StoreClient` does, if the store shows no
    heartbeat or a rank fails.
    """

    def __init__(
        self,
        block: StoreMemory,
        member: int,
        client: StoreClient,
        wait_and_pull: Callable[[StoreClient, torch.Tensor], None],
    ) -> None:
        """`block`: the node's block, zeroed. `member`: 0 to num_members - 1 on this node, each used once. `client` pushes
        into the node's slot. `wait_and_pull(client, parameters)` waits after a push as the strategy requires, and pulls."""
        self._block = block
        self._layout = block.layout
        self._member = member
        self._client = client
        self._wait_and_pull = wait_and_pull
        self._parameters = block.vector(self._layout.published_offset(0))
        self._contributed = 0

    def start(self, parameters: torch.Tensor) -> Base:
        """Begin to compute with the others: set `parameters` ([size], float32, CPU) to the node's; return their base."""
        if self._member in self._awaited_members(WorkerState.ACTIVE):  # the others cannot have pushed without this member
            arithmetic.copy(self._parameters, parameters)
            return self.base
        with self._locked():
            if self.version < 0 or not self._awaited_members(WorkerState.ACTIVE):  # the node's parameters are not up to date
                self._pull()
            arithmetic.copy(self._parameters, parameters)
            base = self.base
            self._set_state(WorkerState.ACTIVE)
        return base

    def stop(self, state: WorkerState) -> None:
        """Stop computing, for good (`LEFT`) or for a while (`AWAY`)."""
        with self._locked():  # unlocking wakes the others: the sum may be complete now
            self._set_state(state)
            if not self._awaited_members():
                self._client.idle()

    def push_pull(self, gradient: torch.Tensor, arrival: Arrival, parameters: torch.Tensor, computing: int = IDLE) -> Base:
        """Add `gradient` ([size], float32, CPU) to the node's next push, set `parameters` to the result of the pull after
        it, and return their base. `computing`: base version of a gradient that this member computes meanwhile."""
        slot = self._member
        arithmetic.copy(gradient, self._block.vector(self._layout.slot_offset(slot)))
        self._block.store_words(self._layout.arrival_word(slot, 0, ArrivalWord.WORKER), arrival_words.to_words(arrival))
        self._block.store(self._layout.slot_word(slot, SlotWord.BASE_VERSION), computing)
        self._contributed += 1  # announced last: the member that pushes reads the rest only after PUSHED has risen
        self._block.store(self._layout.slot_word(slot, SlotWord.PUSHED), self._contributed)
        self._wait(self._is_served)
        arithmetic.copy(self._parameters, parameters)
        base = self.base
        # Only now may the next pull overwrite the node's copy.
        self._block.store(self._layout.slot_word(slot, SlotWord.FREED), self._contributed)
        return base

    def _is_served(self) -> bool:
        if self._word(self._member, SlotWord.DRAINED) == self._contributed:
            return True
        if not self._is_complete() or not self._lock():
            return False
        try:
            if self._word(self._member, SlotWord.DRAINED) != self._contributed and self._is_complete():
                self._push_and_pull()
        finally:
            self._unlock()
        return self._word(self._member, SlotWord.DRAINED) == self._contributed

    def _is_complete(self) -> bool:
        """Whether all members that compute, or are about to begin, have contributed."""
        return all(self._has_contributed(member) for member in self._awaited_members())

    def _push_and_pull(self) -> None:
        contributors = [m for m in range(self._layout.num_workers) if self._has_contributed(m)]
        arrivals = {member: self._arrival(member) for member in contributors}
        contributors.sort(key=lambda member: arrivals[member].batch)
        inputs = [arithmetic.Input(self._block.vector(self._layout.slot_offset(member))) for member in contributors]
        total = self._block.vector(self._layout.state_offset(_SUM))
        for start in range(0, len(inputs), arithmetic.MAX_INPUTS - 1):
            first = [] if start == 0 else [arithmetic.Input(total)]
            arithmetic.sum_inputs([*first, *inputs[start : start + arithmetic.MAX_INPUTS - 1]], total, 1.0)
        self._client.take_over(self.base)
        self._client.keep_announced(min(self._word(member, SlotWord.BASE_VERSION) for member in contributors))
        self._client.push(total, [arrivals[member] for member in contributors])
        # Members may still be copying the result of the previous pull.
        self._wait(lambda: all(map(self._has_copied, range(self._layout.num_workers))))
        self._pull()
        for member in contributors:
            self._block.store(self._layout.slot_word(member, SlotWord.DRAINED), self._word(member, SlotWord.PUSHED))
            self._block.ring(self._layout.slot_word(member, SlotWord.BELL))

    def _pull(self) -> None:
        self._client.take_over(self.base)
        self._wait_and_pull(self._client, self._parameters)
        base = self._client.base
        self._block.store_words(_BASE, [base.provisional, base.number])
        self._block.store(_VERSION, base.version + 1)

    @property
    def version(self) -> int:
        """Version of the node's parameters; -1 before the first pull."""
        return self._block.load(_VERSION) - 1

    @property
    def base(self) -> Base:
        """Base of the node's parameters."""
        return Base(self.version, *self._block.load_words(_BASE, 2)) if self.version >= 0 else NO_BASE

    def _has_contributed(self, member: int) -> bool:
        return self._word(member, SlotWord.PUSHED) > self._word(member, SlotWord.DRAINED)

    def _has_copied(self, member: int) -> bool:
        """Whether `member` has copied everything that was pulled for it."""
        return self._word(member, SlotWord.DRAINED) == self._word(member, SlotWord.FREED)

    def _awaited_members(self, *wanted: WorkerState) -> Sequence[int]:
        """Return the members whose state is among `wanted`; by default, the members that the others wait for."""
        wanted = wanted or (WorkerState.ACTIVE, WorkerState.ABSENT)
        states = [
            self._block.load(self._layout.worker_word(member, WorkerWord.STATE))
            for member in range(self._layout.num_workers)
        ]
        return [member for member, state in enumerate(states) if state in wanted]

    def _arrival(self, member: int) -> Arrival:
        first = self._layout.arrival_word(member, 0, ArrivalWord.WORKER)
        return arrival_words.from_words(self._block.load_words(first, len(ArrivalWord)), push=-1)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._wait(self._lock)
        try:
            yield
        finally:
            self._unlock()

    def _lock(self) -> bool:
        if self._block.fetch_add(_LOCK, 1) == 0:
            return True
        self._block.fetch_add(_LOCK, -1)
        return False

    def _unlock(self) -> None:
        self._block.fetch_add(_LOCK, -1)
        self._wake()

    def _wait(self, is_over: Callable[[], bool]) -> None:
        self._client.wait_until(is_over, self._block, self._layout.slot_word(self._member, SlotWord.BELL))

    def _wake(self) -> None:
        for member in range(self._layout.num_workers):
            self._block.ring(self._layout.slot_word(member, SlotWord.BELL))

    def _set_state(self, state: WorkerState) -> None:
        self._block.store(self._layout.worker_word(self._member, WorkerWord.STATE), state)

    def _word(self, slot: int, word: int) -> int:
        return self._block.load(self._layout.slot_word(slot, word))
