"""A worker dies between any two writes of a push: the gradient counts if and only if its last word was written."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch

from hvd_async.config import PushConfig
from hvd_async.errors import PeerError
from hvd_async.store.schedule import is_synchronous
from hvd_async.store.serve.client import ClientOptions, StoreClient
from hvd_async.store.serve.node_aggregation import ERRORS, NodeAggregator, node_layout
from hvd_async.store.serve.server import ServerOptions
from hvd_async.store.wire.layout import Layout, SlotWord, StoreMemory, WorkerState, WorkerWord, slot_format
from hvd_async.strategies.push_pull import NodePushPull, wait
from hvd_async.transport.inprocess import ThreadMemory
from hvd_async.vectors.arithmetic import BLOCK
from tests.store.shards import Shards
from tests.store.stores import arrival, asynchronous, make_store, num_provisional, sgd
from tests.store.workers import Pull, Workers

NUM_WORKERS, DOOMED, HEIR = 3, 1, 0
NUM_BATCHES = 24
SIZE = 5  # elements, for the workers of one node


class Killed(Exception):
    """The worker has died."""


@dataclass
class Death:
    """A worker's death at write number `fatal` (0, 1, ...) after `is_armed` was set."""

    fatal: int
    is_armed: bool = False
    has_struck: bool = False
    _writes: itertools.count[int] = field(default_factory=itertools.count)

    def strike_if_due(self) -> None:
        """Raise `Killed` if the worker dies now or has died: what runs afterwards on its way out writes nothing."""
        if self.is_armed and next(self._writes) == self.fatal:
            self.has_struck = True
        if self.has_struck:
            raise Killed


class MortalMemory:
    """A block as seen by a worker that dies before a certain write to it."""

    def __init__(self, memory: ThreadMemory, death: Death) -> None:
        self._memory = memory
        self._fate = death

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)

    def mapped(self, offset: int, count: int, dtype: torch.dtype) -> None:
        """Return None, so that gradients are written by `put`."""

    def put(self, offset: int, source: torch.Tensor) -> None:
        self._fate.strike_if_due()
        # Write half of it first: a write may be cut in two.
        half = source.numel() // 2
        self._memory.put(offset, source[:half])
        self._fate.strike_if_due()
        self._memory.put(offset + half * source.element_size(), source[half:])

    def store_words(self, first: int, values: Sequence[int]) -> None:
        for number, value in enumerate(values):
            self._fate.strike_if_due()
            self._memory.store_words(first + number, [value])

    def store(self, word: int, value: int) -> None:
        self._fate.strike_if_due()
        self._memory.store(word, value)

    def fetch_add(self, word: int, amount: int) -> int:
        self._fate.strike_if_due()
        return self._memory.fetch_add(word, amount)

    def compare_swap(self, word: int, expected: int, value: int) -> int:
        self._fate.strike_if_due()
        return self._memory.compare_swap(word, expected, value)

    def ring(self, bell: int) -> None:
        self._fate.strike_if_due()
        self._memory.ring(bell)


def value_of(batch: int) -> float:
    """Return a recognisable value for `batch`, exact in any sum of a few hundred, in bfloat16 too."""
    return float(batch % 13 - 6)


@dataclass
class MortalWorkers(Workers):
    """Workers of which one dies in its second push. It counts as having left once the others have left."""

    death: Death = field(default_factory=lambda: Death(0))
    pushes: list[int] = field(default_factory=list)
    """Batches of the worker that dies."""
    has_died: bool = False

    def _work(self, worker: int) -> None:
        if worker != DOOMED:
            super()._work(worker)
            return
        windows = [cast(StoreMemory, MortalMemory(memory, self.death)) for memory in self.memories or [self.memory]]
        options = ClientOptions(push=self.push, pulls_provisional=self.strategy.has_provisional)
        client = StoreClient(windows, worker, options)
        client.join()
        parameters = torch.full_like(self.store.parameters, torch.nan)
        try:
            for step in range(2):
                client.pull(parameters)
                base = client.base
                self.pushes.append(client.claim())
                self.death.is_armed = step == 1
                given = arrival(self.pushes[-1], worker=worker, base_version=base.version, provisional=base.provisional)
                client.push(self.gradient(self.pushes[-1]), [given])
        except Killed:
            self.has_died = True
        layout = self.memory.layout
        others = [layout.worker_word(other, WorkerWord.STATE) for other in range(NUM_WORKERS) if other != worker]
        while any(self.memory.load(word) != WorkerState.LEFT for word in others):
            self.memory.wait(layout.slot_word(worker, SlotWord.BELL), 0, 0.001)
        self.memory.store(layout.worker_word(worker, WorkerWord.STATE), WorkerState.LEFT)


def check(workers: MortalWorkers) -> bool:
    """Check what the store applied, and return whether the second gradient counts."""
    first, second = workers.pushes
    num_pushed = workers.memory.load(workers.memory.layout.slot_word(DOOMED, SlotWord.PUSHED))
    # On a busy machine the doomed worker may claim only after the others have used all batches.
    expected = (set(range(NUM_BATCHES)) | {first, second}) - (set() if num_pushed == 2 else {second})
    assert sorted(workers.observer.batches) == sorted(expected) and first in expected
    assert workers.observer.refusals == []
    if workers.strategy.reduction == "sum":
        assert workers.store.parameters.eq(-sum(map(value_of, expected))).all()
    again = workers.expected()
    assert workers.store.parameters.eq(again[workers.store.version, 0]).all()
    for pull in itertools.chain(*workers.pulls.values()):
        value = again[pull.version, pull.provisional]
        assert pull == Pull(pull.version, value, value, pull.provisional)
    return num_pushed == 2


@pytest.mark.parametrize("num_shards", [1, 2])
@pytest.mark.parametrize(("wanted", "provisional"), [(1, False), (4, False), (4, True)])
@pytest.mark.parametrize("form", ["float32", "bfloat16"])
def test_a_gradient_counts_if_and_only_if_its_push_was_finished(
    form: str, wanted: int, provisional: bool, num_shards: int
) -> None:
    """With N = 4 the first gradient often still lies in the slot, and is requested before the second is written."""
    strategy = asynchronous(
        arrivals_per_update=wanted, reduction="weight_mean" if provisional else "sum", provisional=provisional
    )
    push, size = PushConfig.model_validate({"dtype": form}), BLOCK + 3
    counts = []
    for fatal in itertools.count():
        workers = run_workers(strategy, push, size, num_shards, Death(fatal))
        counts.append(check(workers))
        if not workers.has_died:
            break
    assert not counts[0] and counts[-1]
    # For each shard, the gradient takes two writes; then come fourteen words of description and the words that announce
    # it.
    assert len(counts) > 2 * num_shards + 16


def run_workers(strategy: Any, push: PushConfig, size: int, num_shards: int, death: Death) -> MortalWorkers:
    def gradient(batch: int) -> torch.Tensor:
        return torch.full((size,), value_of(batch))

    if num_shards == 1:
        form, places = slot_format(size, slice(0, size), push), num_provisional(strategy)
        memory = ThreadMemory(Layout(size, NUM_WORKERS, slot_format=form, num_provisional=places))
        store = make_store(strategy, num_workers=NUM_WORKERS, memory=memory)
        workers = MortalWorkers(store, strategy, memory, NUM_BATCHES, gradient, push=push, death=death)
        workers.run().check()
        return workers
    with Shards(size, num_shards, NUM_WORKERS, sgd(), strategy, push) as shards:
        store, memories = shards.make_store(), shards.memories
        workers = MortalWorkers(
            store, strategy, memories[0], NUM_BATCHES, gradient, push=push, memories=memories, death=death
        )
        workers.run().check()
        store.detach()
    return workers


# --- Workers of one node ----------------------------------------------------------------------------------------------


@dataclass
class MortalNode(Workers):
    """Two workers of one node, one of which dies in its second exchange; the launcher then ends the other."""

    death: Death = field(default_factory=lambda: Death(0))
    pushes: list[int] = field(default_factory=list)
    has_died: bool = False

    def run(self) -> Workers:
        self.block = ThreadMemory(node_layout(SIZE, 2, has_error=False))
        return super().run()

    def _work(self, worker: int) -> None:
        block, memory = self.block, self.memory
        if worker == DOOMED:
            block, memory = (cast(ThreadMemory, MortalMemory(each, self.death)) for each in (block, memory))
        client = StoreClient([memory], worker, ClientOptions(announces=False), slot=0)
        node = NodeAggregator(block, range(2), worker, client, lambda client: wait(client, self.strategy))
        push_pull = NodePushPull(node, client, self.strategy)
        client.join()
        parameters = torch.full((SIZE,), torch.nan)
        version = push_pull.start(parameters).version
        for step in range(6):
            batch = client.claim()
            if worker == DOOMED:
                self.pushes.append(batch)
                self.death.is_armed = step == 1
            given = arrival(batch, worker=worker, base_version=version)
            try:
                version = push_pull.push_pull(self.gradient(batch), given, parameters).version
            except Killed:
                self.has_died = True
                raise
            self.death.is_armed &= worker != DOOMED
        push_pull.stop()


@pytest.mark.parametrize("lockstep", [False, True])
def test_the_sum_of_a_node_counts_whole_or_not_at_all_whenever_a_member_dies(lockstep: bool) -> None:
    strategy = asynchronous(arrivals_per_update=1, reduction="sum", lockstep=lockstep)
    for fatal in itertools.count():
        memory = ThreadMemory(Layout(SIZE, 2, num_slots=1, arrivals_per_slot=2))
        store = make_store(strategy, num_workers=2, memory=memory)
        workers = MortalNode(
            store, strategy, memory, 12, lambda batch: torch.full((SIZE,), value_of(batch)), death=Death(fatal)
        )
        workers.run()
        batches = workers.observer.batches
        assert len(set(batches)) == len(batches)
        assert store.parameters.eq(-sum(map(value_of, batches))).all()
        assert all(len(update.arrivals) == 2 for update in workers.observer.updates)
        if not workers.has_died:
            assert not workers.failures and sorted(batches) == list(range(12))
            break
        died = workers.failures.pop(f"worker {DOOMED}")
        assert isinstance(died, Killed)
        assert all(isinstance(error, PeerError) and error.is_reported for error in workers.failures.values())
        contributed = workers.block.load(workers.block.layout.slot_word(DOOMED, SlotWord.PUSHED))
        assert set(workers.pushes[:1]) <= set(batches) <= {*range(12)} - set(workers.pushes[contributed:])
    assert fatal > 8


@dataclass
class OutlivedNode(Workers):
    """Three workers of one node, one of which dies in `stage`, and a fourth by itself; the others go on."""

    death: Death = field(default_factory=lambda: Death(0))
    heir: Death | None = None
    """The death of another worker of the node, counted from the first one's."""
    stage: str = "last"
    has_come: bool = False
    """Whether the worker came to the stage."""

    def run(self) -> Workers:
        self.blocks = [ThreadMemory(node_layout(SIZE, size, self.push.error_feedback)) for size in (3, 1)]
        return super().run()

    def _work(self, worker: int) -> None:
        node, member = divmod(worker, 3)
        block, memory = self.blocks[node], self.memory
        death = {DOOMED: self.death, HEIR: self.heir}.get(worker)
        if death is not None:
            block, memory = (cast(ThreadMemory, MortalMemory(each, death)) for each in (block, memory))
        waits = self.strategy.max_staleness is not None
        options = ClientOptions(waits_for_stragglers=waits, announces=waits, push=self.push)
        errors = [block.vector(block.layout.state_offset(each)) for each in ERRORS] if self.push.error_feedback else []
        client = StoreClient([memory], worker, options, slot=node, errors=errors)
        client.join()
        try:
            self._train_in(
                NodePushPull(self._aggregator(block, node, member, client), client, self.strategy), client, worker
            )
        except Killed:
            if self.heir is not None:
                self.heir.is_armed = True
            self._die(worker)

    def _aggregator(self, block: ThreadMemory, node: int, member: int, client: StoreClient) -> NodeAggregator:
        return NodeAggregator(block, [range(3), [3]][node], member, client, lambda client: wait(client, self.strategy))

    def _train_in(self, push_pull: NodePushPull, client: StoreClient, worker: int) -> None:
        parameters = torch.full((SIZE,), torch.nan)
        self._arm(worker, "start", 0)
        base = push_pull.start(parameters)
        for step in itertools.count():
            self._arm(worker, "claim", step)
            batch: int | None = client.claim()
            if batch is not None and batch >= self.num_batches:
                client.let_go(batch)
                self._arm(worker, "rest", step)
                batch = push_pull.wait_for_returned(lambda: None)
                base = push_pull.start(parameters)
            if batch is None:
                break
            time.sleep(0.002 if worker == 3 else 0)  # or it would compute everything by itself
            if worker == DOOMED and self.stage == "last" and step == 1:
                self._wait_for_others()
            self._arm(worker, self.stage if self.stage in ("first", "last") else "push", step)
            given = arrival(batch, worker=worker, base_version=base.version)
            base = push_pull.push_pull(self.gradient(batch), given, parameters)
            if step == 2 and not is_synchronous(self.strategy, base.version):
                self._arm(worker, "pause", 1)
                push_pull.pause()
                base = push_pull.start(parameters)
        self._arm(worker, "stop", 1)
        push_pull.stop()

    def _arm(self, worker: int, stage: str, step: int) -> None:
        if worker == DOOMED:
            self.death.is_armed = stage == self.stage and (step == 1 or stage in ("start", "rest"))
            self.has_come |= self.death.is_armed

    def _wait_for_others(self) -> None:
        """Wait until the others of the node have contributed, so that the worker that dies pushes the sum."""
        block = self.blocks[0]
        for member in {0, 1, 2} - {DOOMED}:
            pushed, drained = (block.layout.slot_word(member, word) for word in (SlotWord.PUSHED, SlotWord.DRAINED))
            while block.load(pushed) == block.load(drained):
                time.sleep(0.001)


STAGES = ["start", "claim", "first", "last", "pause", "rest", "stop"]
STRATEGIES: list[dict[str, Any]] = [
    {"arrivals_per_update": 1},
    {"arrivals_per_update": "workers"},
    {"lockstep": True},
    {"arrivals_per_update": 1, "max_staleness": 1},
]


def run_outlived(
    stage: str, fatal: int, settings: dict[str, Any], push: PushConfig | None = None, heir: Death | None = None
) -> OutlivedNode:
    strategy, num_batches, push = asynchronous(reduction="sum", **settings), 17, push or PushConfig()
    form = slot_format(SIZE, slice(0, SIZE), push)
    memory = ThreadMemory(Layout(SIZE, 4, num_slots=2, arrivals_per_slot=3, slot_format=form))
    store = make_store(strategy, num_workers=4, memory=memory)
    options = ServerOptions(least_workers=1, num_batches=num_batches, slot_of=lambda worker: worker // 3)
    workers = OutlivedNode(
        store,
        strategy,
        memory,
        num_batches,
        lambda batch: torch.full((SIZE,), value_of(batch) / 3 if push.error_feedback else value_of(batch)),
        push=push,
        server=options,
        death=Death(fatal),
        heir=heir,
        stage=stage,
    )
    workers.run().check()
    assert sorted(workers.observer.batches) == list(range(num_batches)), (stage, fatal)
    assert workers.observer.refusals == []
    died = [DOOMED] * workers.death.has_struck + [HEIR] * (heir is not None and heir.has_struck)
    assert sorted(worker for worker, _, _ in workers.observer.losses) == sorted(died)
    assert [update.version for update in workers.observer.updates] == list(range(1, store.version + 1))
    return workers


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("settings", STRATEGIES, ids=str)
def test_a_node_outlives_a_member_that_dies_anywhere(settings: dict[str, Any], stage: str) -> None:
    if settings.get("lockstep") and stage == "pause":
        pytest.skip("in lock-step nobody pauses")
    fatal, is_over = 0, False
    while not is_over:
        workers = run_outlived(stage, fatal, settings)
        assert workers.store.parameters.eq(-sum(map(value_of, range(workers.num_batches)))).all()
        fatal += workers.death.has_struck
        is_over = workers.has_come and not workers.death.has_struck
    assert fatal > {"last": 40, "first": 11, "pause": 4}.get(stage, 0)


@pytest.mark.parametrize("settings", [STRATEGIES[1], STRATEGIES[2]], ids=str)
def test_a_node_outlives_a_member_that_dies_while_it_completes_the_push_of_one_that_died(settings: dict[str, Any]) -> None:
    num_deaths = 0
    for fatal, second in itertools.product(range(14, 62, 8), range(0, 30, 5)):
        workers = run_outlived("last", fatal, settings, heir=Death(second))
        assert workers.store.parameters.eq(-sum(map(value_of, range(workers.num_batches)))).all()
        num_deaths += len(workers.deaths)
    assert num_deaths > 50


@pytest.mark.parametrize(
    "push", [PushConfig(dtype="bfloat16", error_feedback=True), PushConfig(keep=0.4, error_feedback=True)]
)
def test_nothing_that_error_feedback_keeps_is_lost_or_added_twice_when_a_member_dies(push: PushConfig) -> None:
    for fatal in itertools.count(0, 2):
        workers = run_outlived("last", fatal, STRATEGIES[0], push)
        kept = torch.zeros(SIZE)
        for slot, block in enumerate(workers.blocks):
            num_pushed = workers.memory.load(workers.memory.layout.slot_word(slot, SlotWord.PUSHED))
            kept += block.vector(block.layout.state_offset(ERRORS[num_pushed % 2]))
        whole = sum(value_of(batch) / 3 for batch in range(workers.num_batches))
        assert torch.allclose(kept - workers.store.parameters, torch.tensor(whole), atol=1e-4)
        if not workers.death.has_struck:
            break
    assert fatal > 40
