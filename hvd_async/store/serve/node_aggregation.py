"""Node aggregation: the gradients of a node's workers are summed in shared memory; one push and one pull serve all of them.

A member that finds that all computing members of the node have contributed pushes and pulls, under a lock; usually this is
the last member to contribute. Members that evaluate or have left are not waited for.

Members may die at any moment. The store decides who is dead, and gives out what a dead worker held only after the node's
members have settled its part, under the lock: nothing of it is added to a sum any more. A member that dies while it has the lock
leaves words from which the next one completes what it did: a sum that was pushed counts whole; one that was not is formed
again from the gradients of those that live.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from hvd_async.store.arrival import Arrival
from hvd_async.store.serve.client import StoreClient
from hvd_async.store.serve.liveness import ON_THE_WAY_SECONDS
from hvd_async.store.serve.node_lock import NodeLock
from hvd_async.store.serve.readings import NO_BASE, Base
from hvd_async.store.wire import arrival_words
from hvd_async.store.wire.layout import (
    ARRIVAL_WORDS,
    IDLE,
    ArrivalWord,
    Layout,
    SlotWord,
    StoreMemory,
    Word,
    WorkerState,
    WorkerWord,
)
from hvd_async.store.wire.stop import StopNotice
from hvd_async.vectors import arithmetic

# The node's block has the layout of a store's block: a slot for each member, one published copy, the sum and the kept error.
# Some words have another meaning here than in a store's block; the lock's owner writes all but the first of a slot.
_VERSION = Word.VERSION  # 1 + the version of the node's parameters
_BASE = Word.PROVISIONAL  # two words: the fields of `Base` other than the version
_IS_TORN = Word.NEXT_VERSION  # 1 while the node's parameters are being written
_PUSH = Word.EVALUATIONS_DUE  # number of the push under way for the members; 0: none
_PULLED = Word.EVALUATIONS  # number of the last push whose pull is complete
_ADDED = SlotWord.RELEASED  # which contribution of the member is in the sum
_SUM, ERRORS = 0, (1, 2)


def node_layout(size: int, num_members: int, has_error: bool) -> Layout:
    """Return the layout of a node's block for vectors of `size` elements."""
    return Layout(size, num_members, num_buffers=1, num_state_vectors=3 if has_error else 1)


class NodeAggregator:
    """One member's access to the aggregation of its node. Used by one thread.

    Every method may wait for the other members or the store. Raises `PeerError` as `StoreClient` does, if the store shows no
    heartbeat, a rank fails, or the store takes this worker for dead.
    """

    def __init__(
        self,
        block: StoreMemory,
        workers: Sequence[int],
        member: int,
        client: StoreClient,
        wait: Callable[[StoreClient], None],
    ) -> None:
        """`block`: the node's block, zeroed. `workers`: those of the node. `member`: the place of this one among them. `client`
        pushes into the node's slot. `wait(client)` waits after a push as the strategy requires."""
        self._block = block
        self._layout = block.layout
        self._workers = workers
        self._member = member
        self._client = client
        self._wait_for_store = wait
        self._parameters = block.vector(self._layout.published_offset(0))
        self._contributed = 0
        self._lock = NodeLock(block, member)
        self._num_settled = 0

    def start(self, parameters: torch.Tensor) -> Base:
        """Begin to compute with the others: set `parameters` ([size], float32, CPU) to the node's; return their base."""
        if self._member in self._awaited_members(WorkerState.ACTIVE):  # the others cannot have pushed without this member
            arithmetic.copy(self._parameters, parameters)
            return self.base
        with self._locked():
            self._begin()
            arithmetic.copy(self._parameters, parameters)
            return self.base

    def _begin(self) -> None:
        """Begin to compute; this member has the lock."""
        if (
            self.version < 0 or self._is_torn() or not self._awaited_members(WorkerState.ACTIVE)
        ):  # or they are not up to date
            self._pull()
        self._set_state(self._member, WorkerState.ACTIVE)

    def stop(self, state: WorkerState) -> None:
        """Stop computing, for good (`LEFT`) or for a while (`AWAY`)."""
        with self._locked():  # unlocking wakes the others: the sum may be complete now
            self._set_state(self._member, state)
            self._say_if_idle()

    def wait_for_returned(self, stop_requested: Callable[[], StopNotice | None]) -> int | None:
        """Stop computing, and wait for a batch that another worker returns: see `StoreClient.wait_for_returned`. With the batch
        this member computes again."""
        self.stop(WorkerState.AWAY)
        batch, is_over = None, False
        while batch is None and not is_over:
            self._client.rest(stop_requested, self._look_after_lost)
            # The store waits for this worker from then on: so no push of the others may be under way, which would wait too.
            with self._locked():
                batch, is_over = self._client.take_returned()
                if batch is not None:
                    self._begin()
        return batch

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
        arithmetic.copy(self._parameters, parameters)  # the next pull comes after this member's next contribution
        return self.base

    def _is_served(self) -> bool:
        if self._word(self._member, SlotWord.DRAINED) == self._contributed:
            return True
        if not self._is_complete() or not self._lock.take():
            return False
        with self._holding():
            if self._word(self._member, SlotWord.DRAINED) != self._contributed and self._is_complete():
                self._push_and_pull()
        return self._word(self._member, SlotWord.DRAINED) == self._contributed

    def _is_complete(self) -> bool:
        """Whether all members that compute, or are about to begin, have contributed."""
        return all(self._has_contributed(member) for member in self._awaited_members())

    def _push_and_pull(self) -> None:
        contributors = list(self._awaited_members())
        arrivals = {member: self._arrival(member) for member in contributors}
        contributors.sort(key=lambda member: arrivals[member].batch)
        inputs = [arithmetic.Input(self._block.vector(self._layout.slot_offset(member))) for member in contributors]
        total = self._block.vector(self._layout.state_offset(_SUM))
        for start in range(0, len(inputs), arithmetic.MAX_INPUTS - 1):
            first = [] if start == 0 else [arithmetic.Input(total)]
            arithmetic.sum_inputs([*first, *inputs[start : start + arithmetic.MAX_INPUTS - 1]], total, 1.0)
        for member in contributors:
            self._block.store(self._layout.slot_word(member, _ADDED), self._word(member, SlotWord.PUSHED))
        self._client.take_over(self.base)
        self._client.keep_announced(min(self._word(member, SlotWord.BASE_VERSION) for member in contributors))
        self._block.store(_PUSH, self._client.num_pushed + 1)
        self._client.push(total, [arrivals[member] for member in contributors])
        self._complete()

    def _complete(self) -> None:
        """Pull after the push under way, and tell the members whose gradients were in it."""
        number = self._block.load(_PUSH)
        if self._block.load(_PULLED) != number:
            self._pull()
            self._block.store(_PULLED, number)  # from now on members use what was pulled
        for member in self._added_members():
            self._block.store(self._layout.slot_word(member, SlotWord.DRAINED), self._word(member, _ADDED))
            self._block.ring(self._layout.slot_word(member, SlotWord.BELL))
        self._block.store(_PUSH, 0)

    def _pull(self) -> None:
        base = self.base
        # Parameters that are torn are not those that the client pulled last.
        self._client.take_over(dataclasses.replace(base, number=-1) if self._is_torn() else base)
        # In lock-step the store may wait for a batch that a dead member holds, and so for the lock, which this member has.
        with self._client.looking(self._settle_as_owner):
            self._wait_for_store(self._client)
        self._block.store(_IS_TORN, 1)
        self._client.pull(self._parameters)
        base = self._client.base
        self._block.store_words(_BASE, [base.provisional, base.number])
        self._block.store(_VERSION, base.version + 1)
        self._block.store(_IS_TORN, 0)

    # --- Members that die. --------------------------------------------------------------------------------------------

    def _look_after_lost(self) -> None:
        """Settle the part of members that are dismissed, if the lock is free, or its owner is one of them."""
        number = self._client.dismissals.num_lost()
        if number == self._num_settled:
            return
        self._num_settled = self._client.dismissals.num_settled()  # perhaps another member has
        if number == self._num_settled:
            return
        if self._lock.take_from_dead(lambda member: self._client.dismissals.is_dismissed(self._workers[member])):
            with self._holding():
                self._settle()

    def _settle_as_owner(self) -> None:
        if self._client.dismissals.num_lost() != self._client.dismissals.num_settled():
            self._settle()

    def _settle(self) -> None:
        """Count members that are dismissed no more; this member has the lock."""
        number = self._client.dismissals.num_lost()
        for member, worker in enumerate(self._workers):
            if self._client.dismissals.is_dismissed(worker):
                self._set_state(member, WorkerState.LEFT)
                self._block.store(self._layout.slot_word(member, SlotWord.DRAINED), self._word(member, _ADDED))
        self._say_if_idle()
        self._client.dismissals.settle(number)  # last: the store gives out again what they held

    def _say_if_idle(self) -> None:
        if not self._awaited_members():
            self._client.take_over(self.base)
            self._client.idle()

    def _repair(self) -> None:
        """Complete the push that the lock's last owner did not complete, or drop it: its members push again."""
        number = self._block.load(_PUSH)
        if number == 0:
            return
        if self._client.is_remote:
            time.sleep(ON_THE_WAY_SECONDS)  # no word tells when the last write of the dead has arrived
        self._client.take_over(self.base)
        if self._client.num_pushed < number:
            self._block.store(_PUSH, 0)
            return
        if self._block.load(_PULLED) != number:
            self._client.keep_announced(min(self._word(member, SlotWord.BASE_VERSION) for member in self._added_members()))
            self._client.announce_pushed()
        self._complete()

    def _added_members(self) -> list[int]:
        """Return the members whose gradients are in the sum, and that were not told that it was pushed."""
        members = range(self._layout.num_workers)
        return [member for member in members if self._word(member, _ADDED) > self._word(member, SlotWord.DRAINED)]

    def _is_torn(self) -> bool:
        return self._block.load(_IS_TORN) != 0

    # --- Words of the block. ------------------------------------------------------------------------------------------

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
        return arrival_words.from_words(self._block.load_words(first, ARRIVAL_WORDS), push=-1)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._wait(self._lock.take)
        with self._holding():
            yield

    @contextlib.contextmanager
    def _holding(self) -> Iterator[None]:
        """Give the lock back after the block, which begins with the node's words in order."""
        try:
            self._client.dismissals.check()  # after the lock is taken: the others settle the part of the dismissed under it
            self._repair()
            yield
        finally:
            self._lock.release()
            self._wake()

    def _wait(self, is_over: Callable[[], bool]) -> None:
        bell = self._layout.slot_word(self._member, SlotWord.BELL)
        self._client.wait_until(is_over, self._block, bell, self._look_after_lost)

    def _wake(self) -> None:
        for member in range(self._layout.num_workers):
            self._block.ring(self._layout.slot_word(member, SlotWord.BELL))

    def _set_state(self, member: int, state: WorkerState) -> None:
        self._block.store(self._layout.worker_word(member, WorkerWord.STATE), state)

    def _word(self, slot: int, word: int) -> int:
        return self._block.load(self._layout.slot_word(slot, word))
