"""Several shards that act as one: the sequencer's own, and shards of other ranks, which the sequencer directs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hvd_async.store.optimizers.protocol import StepOrder
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.serve.liveness import HeartbeatWatch, wait_until
from hvd_async.store.shards.orders import Order, OrderKind
from hvd_async.store.shards.shard import Shard
from hvd_async.store.wire.layout import ShardWord, StoreMemory, StoreWindow, Word
from hvd_async.store.wire.stop import check_state
from hvd_async.vectors import arithmetic
from hvd_async.vectors.vector_map import VectorMap

# Short, since shards answer soon.
_LONGEST_POLL_SECONDS = 0.0002
# Elements per read; `touch` is called after each.
_PIECE = 1 << 24


@dataclass(frozen=True)
class RemoteShard:
    """A shard of another rank, as the sequencer reaches it."""

    number: int
    rank: int
    window: StoreWindow
    part: slice


@dataclass(frozen=True)
class WholeVectors:
    """The vectors of all shards together: `state_names` are those in each block, in their order; `vector_map`: their groups
    of parameters and matrices."""

    state_names: Sequence[str]
    vector_map: VectorMap


def place_in_block(name: str, state_names: Sequence[str], sum_place: int | None) -> int:
    """Return which of a block's vectors for the optimizer is `name`: they are `state_names`, and after them the second for the
    pending sum, if there is one. `sum_place`: which of the two holds it."""
    return len(state_names) if name == "pending_sum" and sum_place else state_names.index(name)


class ShardGroup:
    """Implements `ShardOps` on shard 0 and `others`. Used by one thread, on the sequencer's rank.

    All shards get the same orders in the same sequence. Calls whose result the sequencer needs before its next decision
    block. Raises `PeerError`, which names the shard, if a shard shows no heartbeat for `timeout_seconds`.
    """

    def __init__(
        self,
        own: Shard,
        memory: StoreMemory,
        others: Sequence[RemoteShard],
        whole: WholeVectors,
        timeout_seconds: float,
        touch: Callable[[], None] = lambda: None,
    ) -> None:
        """`memory` is the block of `own`; `whole` describes the vectors of all shards together. `touch` is called while this
        rank waits for others: see `Heartbeat.touch`."""
        self.vector_map = whole.vector_map
        self._own = own
        self._memory = memory
        self._others = others
        self._state_names = list(whole.state_names)
        self._timeout_seconds = timeout_seconds
        self._touch = touch
        self._num_orders = 0
        self._size = others[-1].part.stop

    @property
    def sum_place(self) -> int | None:
        """Which of the vectors for the pending sum holds it, on every shard: all carry out the same orders."""
        return self._own.sum_place

    @property
    def parameters(self) -> torch.Tensor:
        """Parameters of the newest version: [size], float32. A copy, which is read from all shards at each access."""
        return self.read("parameters")

    def read(self, name: str) -> torch.Tensor:
        """Return a copy of vector `name`: [size], float32. The shards are idle meanwhile: only this thread gives orders."""
        whole = torch.empty(self._size)
        mine = self._own.read(name)
        whole[: mine.numel()] = mine
        for other in self._others:
            layout = other.window.layout
            if name == "parameters":
                offset = layout.published_offset(self._own.version)
            else:
                offset = layout.state_offset(place_in_block(name, self._state_names, self._own.sum_place))
            self._read_part(other.window, offset, whole[other.part])
        return whole

    def _read_part(self, window: StoreWindow, offset: int, target: torch.Tensor) -> None:
        for start in range(0, target.numel(), _PIECE):
            window.get(offset + 4 * start, target[start : start + _PIECE])
            self._touch()

    def add(self, gradient: Gradient, divisor: float) -> None:
        self._tell(Order(OrderKind.ADD, slot=gradient.slot, number=divisor))
        self._own.add(gradient, divisor)

    def compensate(self, gradient: Gradient, base_version: int, factor: float) -> None:
        self._tell(Order(OrderKind.COMPENSATE, slot=gradient.slot, version=base_version, number=factor))
        self._own.compensate(gradient, base_version, factor)
        self._wait()

    def flush(self) -> None:
        self._tell(Order(OrderKind.FLUSH))
        self._own.flush()
        self._wait()

    def norm(self, divisor: float) -> list[float]:
        self._tell(Order(OrderKind.NORM, number=divisor))
        return self._own.norm(divisor) + self._wait_for_partials()

    def step(self, order: StepOrder) -> list[float]:
        self._tell(
            Order(
                OrderKind.STEP,
                version=order.version,
                number=order.divisor,
                rate_factor=order.rate_factor,
                clip=order.clip,
            )
        )
        return self._own.step(order) + self._wait_for_partials()

    def provisional_step(self, order: StepOrder, number: int) -> None:
        self._tell(Order(OrderKind.PROVISIONAL_STEP, number, order.version, order.divisor, order.rate_factor, order.clip))
        self._own.provisional_step(order, number)
        self._wait()

    def discard(self) -> None:
        self._tell(Order(OrderKind.DISCARD))
        self._own.discard()

    def forget(self, version: int) -> None:
        self._tell(Order(OrderKind.FORGET, version=version))
        self._own.forget(version)

    def load(self, tensors: Mapping[str, torch.Tensor], version: int) -> None:
        """Restore the part of the own shard. The other shards load their own parts before they begin to serve."""
        length = self._own.parameters.numel()
        self._own.load({name: tensor[:length] for name, tensor in tensors.items()}, version)

    def meet(self) -> None:
        """Wait until the other shards have their parameters and serve. Called once, before anything is published."""
        # An order without effect, since there is no version -1. DISCARD would lose the pending sum of a checkpoint.
        self._tell(Order(OrderKind.FORGET, version=-1))
        self._wait()

    def end(self) -> None:
        """End the loops of the other shards."""
        self._tell(Order(OrderKind.END))
        self._wait()

    def _tell(self, order: Order) -> None:
        words, windows = order.to_words(), [other.window for other in self._others]
        # Step by step for all shards: messages to the hosts of different shards are under way together.
        for window in windows:
            window.store_words(window.layout.order_word(self._num_orders), words)
        for window in windows:
            window.flush()
        for window in windows:
            window.store(Word.ORDERS, self._num_orders + 1)
            window.ring(Word.STORE_BELL)
        self._num_orders += 1
        if self._num_orders % 16 == 0:
            self._wait()  # so that orders not yet carried out never fill the ring

    def _wait_for_partials(self) -> list[float]:
        self._wait()
        first = self._others[0].part.start // arithmetic.BLOCK
        layout = self._memory.layout
        partials: list[float] = self._memory.vector(layout.partials_offset, layout.num_partials, torch.float64)[
            first:
        ].tolist()
        return partials

    def _wait(self) -> None:
        """Wait until all shards have carried out all orders."""
        for other in self._others:
            layout = self._memory.layout
            done = layout.shard_word(other.number, ShardWord.DONE)
            who = f"shard {other.number} of the store (rank {other.rank})"
            heartbeat = layout.shard_word(other.number, ShardWord.HEARTBEAT)
            watch = HeartbeatWatch(self._memory, heartbeat, who, self._timeout_seconds)
            wait_until(
                lambda done=done: self._memory.load(done) == self._num_orders,  # type: ignore[misc]  # mypy cannot infer a lambda with a default
                self._memory,
                Word.STORE_BELL,
                functools.partial(self._look_around, watch),
                longest_poll_seconds=_LONGEST_POLL_SECONDS,
            )

    def _look_around(self, watch: HeartbeatWatch) -> None:
        self._touch()
        # Only the loss of a shard ends this wait. After any other failure the order is still completed on all shards, so the
        # parameters stay whole.
        check_state(self._memory)
        watch.check()
