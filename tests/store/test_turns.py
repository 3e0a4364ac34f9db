"""What a turn of the store's loop costs, in words that it reads one by one."""

from __future__ import annotations

import itertools
import statistics

import pytest

from hvd_async.benchmarks.null_observer import NullObserver
from hvd_async.config import OptimizerConfig, PushConfig, StrategyConfig
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.serve.server import ServerOptions, StoreServer
from hvd_async.store.shards.in_block import shard_in
from hvd_async.store.wire.layout import Layout, WorkerState, WorkerWord, slot_format
from hvd_async.store.wire.stop import StopNotice
from hvd_async.transport.inprocess import ThreadMemory
from hvd_async.transport.word_column import WordColumn
from hvd_async.vectors.vector_map import VectorMap

SIZE = 100
OPTIMIZER, STRATEGY = OptimizerConfig(kind="sgd"), StrategyConfig(kind="async")


class CountingMemory(ThreadMemory):
    """Counts the words that are read one by one."""

    num_loads = 0

    def load(self, word: int) -> int:
        self.num_loads += 1
        return super().load(word)


class EnoughTurns(Exception):
    """Ends a loop that nothing else ends."""


def loads_of_an_idle_turn(num_workers: int) -> float:
    layout = Layout(SIZE, num_workers, slot_format=slot_format(SIZE, slice(0, SIZE), PushConfig()))
    memory = CountingMemory(layout)
    shard = shard_in(memory, slice(0, SIZE), VectorMap.of_size(SIZE), OPTIMIZER, STRATEGY)
    store = ParameterStore(shard, SIZE, OPTIMIZER, STRATEGY, num_workers)
    for worker in range(num_workers):
        memory.store(layout.worker_word(worker, WorkerWord.STATE), WorkerState.ACTIVE)
    counts: list[int] = []

    def count() -> StopNotice | None:
        counts.append(memory.num_loads)
        if len(counts) > 50:
            raise EnoughTurns
        return None

    with pytest.raises(EnoughTurns):
        StoreServer(store, memory, NullObserver(), ServerOptions(num_batches=10**9)).serve(count)
    return statistics.median(b - a for a, b in itertools.pairwise(counts))


def test_an_idle_turn_reads_as_many_words_for_256_workers_as_for_4() -> None:
    few = loads_of_an_idle_turn(4)
    assert 0 < few == loads_of_an_idle_turn(256)


def test_a_column_shows_what_changed_until_it_is_known() -> None:
    layout = Layout(SIZE, num_workers=5, slot_format=slot_format(SIZE, slice(0, SIZE), PushConfig()))
    memory = ThreadMemory(layout)
    column = WordColumn(memory, *layout.worker_column(WorkerWord.STATE), [0] * 5)
    assert column.changed() == []
    memory.store(layout.worker_word(4, WorkerWord.STATE), 2**62)
    memory.store(layout.worker_word(1, WorkerWord.STATE), -7)
    memory.store(layout.worker_word(2, WorkerWord.HEARTBEAT), 3)
    assert column.changed() == [1, 4]
    column.know(4, 2**62)
    assert column.changed() == [1]
