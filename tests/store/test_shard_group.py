"""Several shards as threads, compared with a single one: the same bits after any calls; orders, silence and the end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from hvd_async.config import OptimizerConfig, PushConfig, StrategyConfig
from hvd_async.errors import PeerError
from hvd_async.store.optimizers.factory import state_names
from hvd_async.store.optimizers.protocol import StepOrder
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.shards.orders import Order, OrderKind
from hvd_async.store.shards.shard import Shard
from hvd_async.store.staleness import needs_base_parameters
from hvd_async.store.wire.layout import NUM_ORDERS, Layout, Word, slot_format
from hvd_async.store.wire.slots import SlotWriter, read_slot, split
from hvd_async.store.wire.stop import StopKind, StopNotice, announce_failure
from hvd_async.transport.inprocess import ThreadMemory
from hvd_async.vectors.arithmetic import BLOCK
from tests.store.shards import Shards
from tests.store.stores import arrival, asynchronous, num_provisional, provisional_vectors, sgd
from tests.store.workers import Pull, Workers

SIZE = 3 * BLOCK + 77
NUM_WORKERS = 3


pytestmark = pytest.mark.usefixtures("quick_switches")


STRATEGIES: dict[str, dict[str, Any]] = {
    "plain": {"arrivals_per_update": 1},
    "several": {"arrivals_per_update": 5},
    "workers": {"arrivals_per_update": "workers", "reduction": "sum"},
    "inverse": {"arrivals_per_update": 2, "staleness_policy": "inverse"},
    "compensated": {"arrivals_per_update": 2, "staleness_policy": "delay_compensation", "delay_compensation": 0.5},
    "dropped": {"arrivals_per_update": 2, "max_staleness": 1, "on_stale": "drop", "pending": "drop"},
    "provisional": {"arrivals_per_update": 5, "provisional": True},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"kind": "adam"},
    "adamw": {"kind": "adamw", "weight_decay": 0.1, "clip_norm": 3.0, "average_decay": 0.9},
    "nesterov": {"kind": "sgd", "momentum": 0.9, "nesterov": True, "clip_norm": 3.0},
    "adagrad": {"kind": "adagrad", "initial_accumulator": 0.1},
}
FORMATS = {
    "float32": PushConfig(),
    "bfloat16": PushConfig(dtype="bfloat16", error_feedback=True),
    "few": PushConfig(keep=0.02, error_feedback=True),
}


class SingleShard:
    """A store with a single shard, to compare with."""

    def __init__(self, optimizer: OptimizerConfig, strategy: StrategyConfig, push: PushConfig) -> None:
        whole = split(SIZE, 1)
        form = slot_format(SIZE, whole[0], push)
        self.memory = ThreadMemory(Layout(SIZE, NUM_WORKERS, slot_format=form, num_provisional=num_provisional(strategy)))
        self.writer = SlotWriter([self.memory], whole, push)
        buffers = [torch.zeros(SIZE), torch.zeros(SIZE)]
        provisional = provisional_vectors(self.memory)
        shard = Shard(buffers, optimizer, provisional=provisional, keeps_bases=needs_base_parameters(strategy))
        self.store = ParameterStore(shard, SIZE, optimizer, strategy, NUM_WORKERS)


def read_first(memory: ThreadMemory, slot: int, largest: float) -> Gradient:
    return read_slot(memory, memory.layout, slot, largest)


def provisional_of(memories: Sequence[ThreadMemory], number: int) -> torch.Tensor:
    return torch.cat([memory.vector(memory.layout.provisional_offset(number)) for memory in memories])


def assert_same_state(one: ParameterStore, several: ParameterStore) -> None:
    (tensors, data), (others, other_data) = one.state(), several.state()
    assert data == other_data and tensors.keys() == others.keys()
    for name in tensors:
        assert torch.equal(tensors[name], others[name]), name


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("strategy_name", STRATEGIES)
def test_several_shards_equal_one_to_the_last_bit(strategy_name: str, optimizer_name: str, form: str) -> None:
    strategy = asynchronous(**STRATEGIES[strategy_name])
    optimizer = OptimizerConfig(**{"learning_rate": 0.1, **OPTIMIZERS[optimizer_name]})
    draw = random.Random(f"{strategy_name} {optimizer_name} {form}")
    one = SingleShard(optimizer, strategy, FORMATS[form])
    with Shards(SIZE, draw.choice((2, 3, 4)), NUM_WORKERS, optimizer, strategy, FORMATS[form]) as shards:
        store, writer = shards.make_store(), SlotWriter(shards.memories, shards.parts, FORMATS[form])
        number = 0
        for batch in range(30):
            slot = draw.randrange(NUM_WORKERS)
            if slot in store.unread_slots or draw.random() < 0.1:
                one.store.flush()
                store.flush()
            gradient = torch.randn(SIZE, generator=torch.Generator().manual_seed(batch))
            if draw.random() < 0.1:
                gradient[draw.randrange(SIZE)] = torch.inf
            given = [
                arrival(batch, worker=slot, base_version=max(0, store.version - draw.randrange(3)), weight=1 + batch % 4)
            ]
            sent = one.writer.write(gradient, slot)
            assert writer.write(gradient, slot) == sent
            one.store.accept(given, read_first(one.memory, slot, sent.largest))
            store.accept(given, read_first(shards.memories[0], slot, sent.largest))
            if store.makes_provisional():
                number += 1
                assert one.store.make_provisional(number) == store.make_provisional(number) == len(store.pending)
                assert torch.equal(provisional_of(shards.memories, number), provisional_of([one.memory], number))
            if draw.random() < 0.1:
                assert_same_state(one.store, store)
            update = store.advance()
            assert one.store.advance() == update  # including its norm
            assert torch.equal(store.parameters, one.store.parameters)
            assert store.unread_slots == one.store.unread_slots and store.take_refused() == one.store.take_refused()
            if update is not None:
                for each in (one.store, store):
                    each.keep_base_versions(range(update.version - 3, update.version))
        assert store.version > 2 and (number > 10) == (strategy_name == "provisional")
        assert one.store.finish() == store.finish()
        assert_same_state(one.store, store)
        store.detach()
    assert_same_state(one.store, store)


def test_the_ring_of_orders_wraps_around() -> None:
    optimizer = sgd(momentum=0.5)
    alone = Shard([torch.zeros(SIZE), torch.zeros(SIZE)], optimizer)
    with Shards(SIZE, 3, 1, optimizer, asynchronous()) as shards:
        draw = random.Random(1)
        memories = shards.memories
        for turn in range(3 * NUM_ORDERS):
            values = torch.full((SIZE,), float(turn % 7))
            SlotWriter(memories, shards.parts, PushConfig()).write(values, 0)
            shards.vectors.add(read_first(memories[0], 0, 0.0), 1.0)
            alone.add(Gradient.measure(values), 1.0)
            if draw.random() < 0.5:
                shards.vectors.discard()
                alone.discard()
            else:  # the slot is about to be overwritten
                shards.vectors.flush()
                alone.flush()
            shards.vectors.forget(-1)
        for vectors in (alone, shards.vectors):
            vectors.add(read_first(memories[0], 0, 0.0) if vectors is shards.vectors else Gradient.measure(values), 1.0)
        assert shards.vectors.step(StepOrder(1, 1.0, 1.0)) == alone.step(StepOrder(1, 1.0, 1.0))
        assert torch.equal(shards.vectors.parameters, alone.parameters)
    assert memories[1].load(Word.ORDERS) > 8 * NUM_ORDERS


def test_orders_survive_the_way_through_words() -> None:
    order = Order(OrderKind.STEP, slot=3, version=2**40, number=1 / 3, rate_factor=1e-300, clip=0.1)
    assert Order.from_words(order.to_words()) == order


@pytest.mark.parametrize("kind", ["adam", "adagrad"])
def test_a_checkpoint_of_several_shards_resumes_with_any_number_of_shards(kind: str) -> None:
    settings = {"kind": kind, "initial_accumulator": 0.5 if kind == "adagrad" else 0.0}
    optimizer = OptimizerConfig.model_validate({"average_decay": 0.9, "clip_norm": 1.0, **settings})
    strategy = asynchronous(arrivals_per_update=2)
    gradients = [torch.randn(SIZE, generator=torch.Generator().manual_seed(batch)) for batch in range(9)]

    def feed(shards: Shards, store: ParameterStore, batches: range) -> None:
        writer = SlotWriter(shards.memories, shards.parts, PushConfig())
        for batch in batches:
            writer.write(gradients[batch], batch % 3)
            store.accept([arrival(batch)], read_first(shards.memories[0], batch % 3, 9.0))
            store.advance()

    with Shards(SIZE, 2, 3, optimizer, strategy) as unbroken:
        store = unbroken.make_store()
        feed(unbroken, store, range(9))
        expected = store.parameters
    for before, after in ((2, 2), (2, 3), (4, 2)):
        with Shards(SIZE, before, 3, optimizer, strategy) as shards:
            store = shards.make_store()
            feed(shards, store, range(5))
            tensors, data = store.state()
            assert set(tensors) == {"parameters", *state_names(optimizer)}  # one arrival is pending
        resumed = Shards(SIZE, after, 3, optimizer, strategy)
        for number in range(1, after):
            part = resumed.parts[number]
            resumed.shards[number].load({name: tensor[part] for name, tensor in tensors.items()}, data["version"])
        with resumed:
            store = resumed.make_store()
            store.load_state(tensors, data)
            feed(resumed, store, range(5, 9))
            assert torch.equal(store.parameters, expected)


# --- Silence, failure and the end -------------------------------------------------------------------------------------


def test_a_silent_shard_is_named() -> None:
    shards = Shards(SIZE, 3, 1, sgd(), asynchronous(), timeout_seconds=0.2)
    with pytest.raises(
        PeerError, match=r"shard 1 of the store \(rank 11\) gave no sign of life for 0 s \(strategy.store_timeout_seconds\)"
    ) as caught:
        shards.vectors.meet()
    assert not caught.value.is_reported


def test_a_shard_gives_up_on_a_sequencer_that_is_silent() -> None:
    shards = Shards(SIZE, 2, 1, sgd(), asynchronous(), timeout_seconds=0.2)
    with pytest.raises(
        PeerError, match=r"the store's sequencer \(rank 0\) gave no sign of life for .* \(strategy.store_timeout_seconds\)"
    ):
        shards.server(1).serve(lambda: None)


def test_a_shard_that_failed_ends_the_sequencer_whose_state_is_lost() -> None:
    shards = Shards(SIZE, 2, 1, sgd(), asynchronous())
    announce_failure(shards.memories[0], 11, is_state_lost=True)
    with pytest.raises(PeerError, match="rank 11 failed; its message says why") as caught:
        shards.vectors.meet()
    assert caught.value.is_reported and caught.value.is_state_lost


def test_the_shards_continue_after_a_workers_failure_until_their_state_is_saved() -> None:
    shards = Shards(SIZE, 2, 1, sgd(), asynchronous())
    announce_failure(shards.memories[0], 5)
    with pytest.raises(PeerError, match="rank 5 failed") as caught, shards:
        shards.vectors.flush()
        assert shards.vectors.read("parameters").shape == (SIZE,)
    assert caught.value is shards.failures[1] and caught.value.is_reported  # raised when the block ends


def test_a_shard_ends_if_the_sequencer_could_not_save_anything() -> None:
    shards = Shards(SIZE, 2, 1, sgd(), asynchronous())
    announce_failure(shards.memories[0], 5)
    shards.memories[0].store(Word.SERVED, 1)
    with pytest.raises(PeerError, match="rank 5 failed"):
        shards.server(1).serve(lambda: None)


def test_a_request_to_stop_on_a_shards_rank_sets_the_stop_word_and_is_returned_at_the_end() -> None:
    asked = StopNotice(StopKind.SIGNAL, rank=11, signal_number=15)
    with Shards(SIZE, 2, 1, sgd(), asynchronous(), stop_requested=lambda: asked) as shards:
        while shards.memories[0].load(Word.STOP) == 0:
            heard = shards.memories[0].heard(Word.STORE_BELL)
            shards.memories[0].wait(Word.STORE_BELL, heard, 0.01)
    assert shards.notices == {1: asked}


def test_a_request_to_stop_reaches_a_shard_that_is_constantly_busy() -> None:
    asked = StopNotice(StopKind.SIGNAL, rank=11, signal_number=15)
    with Shards(SIZE, 2, 1, sgd(), asynchronous(), stop_requested=lambda: asked) as shards:
        orders = 0
        while shards.memories[0].load(Word.STOP) == 0:
            shards.vectors.discard()
            orders += 1
            assert orders < 100_000, "the shard never sees the request"
    assert shards.notices == {1: asked}


def test_the_sequencer_sends_heartbeats_while_it_waits_for_another_shard() -> None:
    shards = Shards(SIZE, 2, 1, sgd(), asynchronous())
    touches: list[int] = []

    def touch() -> None:
        touches.append(1)
        if len(touches) == 3:  # start the other shard only now
            shards._threads[0].start()

    shards.vectors._touch = touch
    shards.vectors.meet()
    shards.vectors.end()
    shards._threads[0].join()
    assert len(touches) >= 3 and shards.failures == {}


@pytest.mark.parametrize("strategy", [{"arrivals_per_update": 2}, {"lockstep": True}])
def test_workers_train_on_several_shards(strategy: dict[str, Any]) -> None:
    """The server of the protocol's tests, with workers that push to all shards and pull from all."""
    settings = asynchronous(reduction="sum", **strategy)
    with Shards(SIZE, 3, 3, sgd(), settings) as shards:
        workers = Workers(
            shards.make_store(),
            settings,
            shards.memories[0],
            40,
            lambda batch: torch.full((SIZE,), float(batch % 5 - 2)),
            memories=shards.memories,
        )
        workers.run().check()
        assert sorted(workers.observer.batches) == list(range(40))
        total = sum(batch % 5 - 2 for batch in range(40))
        assert torch.equal(workers.store.parameters, torch.full((SIZE,), -float(total)))
        assert all(pull.smallest == pull.largest for pulls in workers.pulls.values() for pull in pulls)


@pytest.mark.parametrize("form", ["float32", "bfloat16"])
def test_provisional_parameters_are_consistent_across_all_shards(form: str) -> None:
    settings = asynchronous(arrivals_per_update=4, provisional=True)
    optimizer, push = sgd(momentum=0.5), PushConfig.model_validate({"dtype": form})
    with Shards(SIZE, 3, 3, optimizer, settings, push) as shards:
        workers = Workers(
            shards.make_store(),
            settings,
            shards.memories[0],
            60,
            lambda batch: torch.full((SIZE,), float(batch % 5 - 2)),
            memories=shards.memories,
            push=push,
            optimizer=optimizer,
        )
        workers.run().check()
        assert sorted(workers.observer.batches) == list(range(60))
    expected, pulls = workers.expected(), [pull for pulls in workers.pulls.values() for pull in pulls]
    assert any(pull.provisional for pull in pulls)
    for pull in pulls:
        value = expected[pull.version, pull.provisional]
        assert pull == Pull(pull.version, value, value, pull.provisional)
