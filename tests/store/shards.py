"""A store of several shards whose ranks are threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from hvd_async.config import OptimizerConfig, PushConfig, StrategyConfig
from hvd_async.store.optimizers.factory import state_names
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.serve.liveness import Heartbeat
from hvd_async.store.shards.shard import Shard
from hvd_async.store.shards.shard_group import RemoteShard, ShardGroup, WholeVectors
from hvd_async.store.shards.shard_server import ShardServer
from hvd_async.store.staleness import needs_base_parameters
from hvd_async.store.wire.layout import Layout, ShardWord, Word, slot_format
from hvd_async.store.wire.slots import split
from hvd_async.store.wire.stop import StopNotice, announce_failure
from hvd_async.transport.inprocess import ThreadMemory
from hvd_async.vectors import arithmetic
from hvd_async.vectors.vector_map import VectorMap
from tests.store.stores import num_provisional, provisional_vectors
from tests.store.workers import JOIN_SECONDS


@dataclass
class Shards:
    """Blocks, shards and servers of a store with `num_shards` shards; inside the `with` block, `vectors` directs all of
    them. Shard k runs on rank 10 + k.
    """

    size: int
    num_shards: int
    num_workers: int
    optimizer: OptimizerConfig
    strategy: StrategyConfig
    push: PushConfig = field(default_factory=PushConfig)
    timeout_seconds: float = 60.0
    stop_requested: Callable[[], StopNotice | None] = lambda: None
    memory_type: Callable[[Layout], ThreadMemory] = ThreadMemory
    failures: dict[int, BaseException] = field(default_factory=dict)
    notices: dict[int, StopNotice | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parts = split(self.size, self.num_shards)
        self.memories = [self.memory_type(self._layout(number, part)) for number, part in enumerate(self.parts)]
        self.shards = [self._shard(memory) for memory in self.memories]
        others = [
            RemoteShard(number, 10 + number, self.memories[number], self.parts[number])
            for number in range(1, self.num_shards)
        ]
        whole = WholeVectors(state_names(self.optimizer), VectorMap.of_size(self.size))
        self.vectors = ShardGroup(self.shards[0], self.memories[0], others, whole, self.timeout_seconds)
        self._threads = [threading.Thread(target=self._serve, args=(number,)) for number in range(1, self.num_shards)]

    def __enter__(self) -> Shards:
        for thread in self._threads:
            thread.start()
        self.vectors.meet()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self.vectors.end()
        else:
            announce_failure(self.memories[0], 10)
            self.memories[0].store(Word.SERVED, 1)
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "a shard hangs"
        if error is None:
            for failure in self.failures.values():
                raise failure

    def make_store(self) -> ParameterStore:
        return ParameterStore(self.vectors, self.size, self.optimizer, self.strategy, self.num_workers)

    def server(self, number: int) -> ShardServer:
        return ShardServer(
            number, self.parts[number], self.shards[number], self.memories[number], self.memories[0], self.timeout_seconds
        )

    def _serve(self, number: int) -> None:
        try:
            word = self.memories[0].layout.shard_word(number, ShardWord.HEARTBEAT)
            with Heartbeat(self.memories[0], word):
                self.notices[number] = self.server(number).serve(self.stop_requested)
        except BaseException as error:
            self.failures[number] = error

    def _layout(self, number: int, part: slice) -> Layout:
        return Layout(
            num_elements=part.stop - part.start,
            num_workers=self.num_workers,
            slot_format=slot_format(self.size, part, self.push),
            num_shards=self.num_shards,
            num_state_vectors=len(state_names(self.optimizer)),
            num_provisional=num_provisional(self.strategy),
            num_partials=-(-self.size // arithmetic.BLOCK) if number == 0 else 0,
        )

    def _shard(self, memory: ThreadMemory) -> Shard:
        layout, names = memory.layout, state_names(self.optimizer)
        buffers = [memory.vector(layout.published_offset(number)) for number in range(layout.num_buffers)]

        def allocate(name: str) -> torch.Tensor:
            return memory.vector(layout.state_offset(names.index(name)))

        keeps_bases = needs_base_parameters(self.strategy)
        provisional = provisional_vectors(memory)
        return Shard(buffers, self.optimizer, provisional=provisional, keeps_bases=keeps_bases, allocate=allocate)
