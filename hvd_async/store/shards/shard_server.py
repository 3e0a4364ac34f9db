"""The loop of a shard other than the sequencer's, which carries out orders on its own range."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hvd_async.store.optimizers.protocol import StepOrder
from hvd_async.store.serve.liveness import Periodic, wait_until, watch_store
from hvd_async.store.shards.orders import Order, OrderKind
from hvd_async.store.shards.shard import Shard
from hvd_async.store.wire.layout import ORDER_WORDS, ShardWord, StoreMemory, StoreWindow, Word
from hvd_async.store.wire.slots import read_slot
from hvd_async.store.wire.stop import StopNotice, read_stop
from hvd_async.transport.block import WORD_BYTES
from hvd_async.vectors import arithmetic

# Interval at which a shard checks on the sequencer, which may be on another node, and on its own process.
_LOOK_AROUND_SECONDS = 0.25


class ShardServer:
    """Serves shard `number` of one run. Used by one thread of the shard's rank; no call is collective."""

    def __init__(
        self,
        number: int,
        part: slice,
        shard: Shard,
        memory: StoreMemory,
        sequencer: StoreWindow,
        timeout_seconds: float,
        touch: Callable[[], None] = lambda: None,
    ) -> None:
        """`shard` holds `part` of the vector in the buffers of `memory`, its own block; `sequencer` reaches block 0. `touch`
        is called several times a second, also while orders come without a pause: see `Heartbeat.touch`."""
        self._number = number
        self._part = part
        self._shard = shard
        self._memory = memory
        self._sequencer = sequencer
        self._timeout_seconds = timeout_seconds
        self._done = 0
        self._touch = touch

    def serve(self, stop_requested: Callable[[], StopNotice | None]) -> StopNotice | None:
        """Serve until the sequencer ends the run, and return the reason. Passes a notice from `stop_requested` on.

        Continues when a rank fails, since the sequencer first saves the state of this shard. Raises `PeerError` if the
        sequencer shows no heartbeat for the configured time, and at the end if a rank has failed.
        """
        store = watch_store(self._sequencer, self._timeout_seconds, "the store's sequencer (rank 0)")

        def check() -> None:
            self._touch()
            self._pass_on(stop_requested())
            if self._sequencer.load(Word.SERVED) and not self._has_order():  # not even to end: nothing could be saved
                read_stop(self._sequencer)
            store.check()

        look_around = Periodic(check, _LOOK_AROUND_SECONDS)
        while True:
            wait_until(self._has_order, self._memory, Word.STORE_BELL, look_around)
            words = self._memory.load_words(self._memory.layout.order_word(self._done), ORDER_WORDS)
            order = Order.from_words(words)
            self._carry_out(order)
            self._done += 1
            self._tell(ShardWord.DONE, self._done)
            if order.kind is OrderKind.END:
                return read_stop(self._sequencer)
            look_around()  # here too: where orders come without a pause, there is no wait

    def _has_order(self) -> bool:
        return self._memory.load(Word.ORDERS) > self._done

    def _carry_out(self, order: Order) -> None:
        if order.kind is OrderKind.ADD:
            self._shard.add(read_slot(self._memory, self._memory.layout, order.slot, 0.0), order.number)
        elif order.kind is OrderKind.COMPENSATE:
            gradient = read_slot(self._memory, self._memory.layout, order.slot, 0.0)
            self._shard.compensate(gradient, order.version, order.number)
        elif order.kind is OrderKind.FLUSH:
            self._shard.flush()
        elif order.kind is OrderKind.NORM:
            self._report(self._shard.norm(order.number))
        elif order.kind is OrderKind.STEP:
            self._report(self._shard.step(StepOrder(order.version, order.rate_factor, order.number, order.clip)))
        elif order.kind is OrderKind.PROVISIONAL_STEP:
            step = StepOrder(order.version, order.rate_factor, order.number, order.clip)
            self._shard.provisional_step(step, order.slot)
        elif order.kind is OrderKind.DISCARD:
            self._shard.discard()
        elif order.kind is OrderKind.FORGET:
            self._shard.forget(order.version)

    def _report(self, partials: list[float]) -> None:
        first = self._part.start // arithmetic.BLOCK
        offset = self._sequencer.layout.partials_offset + WORD_BYTES * first
        self._sequencer.put(offset, torch.tensor(partials, dtype=torch.float64))
        self._sequencer.flush()

    def _tell(self, word: int, value: int) -> None:
        self._sequencer.store(self._sequencer.layout.shard_word(self._number, word), value)
        self._sequencer.ring(Word.STORE_BELL)

    def _pass_on(self, requested: StopNotice | None) -> None:
        if requested is not None and self._sequencer.compare_swap(Word.STOP, 0, requested.to_word()) == 0:
            self._sequencer.ring(Word.STORE_BELL)
