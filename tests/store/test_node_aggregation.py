"""The workers of a node push as one, here as threads: whenever members leave, pause or die, every gradient counts once."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from hvd_async.errors import PeerError
from hvd_async.store.arrival import Arrival
from hvd_async.store.serve.client import ClientOptions, StoreClient
from hvd_async.store.serve.node_aggregation import NodeAggregator, node_layout
from hvd_async.store.wire import arrival_words
from hvd_async.store.wire.layout import ARRIVAL_WORDS, Layout, SlotWord, Word, WorkerState, WorkerWord
from hvd_async.store.wire.stop import StopKind, StopNotice
from hvd_async.strategies.push_pull import NodePushPull, wait
from hvd_async.system.limits import MOST_MICRO_BATCHES
from hvd_async.transport.inprocess import ThreadMemory
from tests.store.stores import arrival, asynchronous, make_store, num_provisional, value_of
from tests.store.workers import Pull, Workers

SIZE = 5


pytestmark = pytest.mark.usefixtures("quick_switches")


@dataclass
class NodeWorkers(Workers):
    """Workers divided among nodes, which pause and leave at random."""

    nodes: Sequence[int] = (3,)
    pauses: float = 0.0
    leaves: float = 0.0
    blocks: list[ThreadMemory] = field(default_factory=list)
    claimed: list[int] = field(default_factory=list)

    def run(self) -> Workers:
        self.blocks = [ThreadMemory(node_layout(SIZE, size, has_error=False)) for size in self.nodes]
        return super().run()

    def _place(self, worker: int) -> tuple[int, int]:
        """Return the node of `worker`, and its number there."""
        places = [(node, member) for node, size in enumerate(self.nodes) for member in range(size)]
        return places[worker]

    def _team(self, node: int) -> list[int]:
        return [worker for worker in range(sum(self.nodes)) if self._place(worker)[0] == node]

    def _work(self, worker: int) -> None:
        node, member = self._place(worker)
        waits = self.strategy.max_staleness is not None and self.strategy.on_stale == "wait"
        provisional = self.strategy.has_provisional
        options = ClientOptions(waits_for_stragglers=waits, announces=waits, pulls_provisional=provisional)
        client = StoreClient([self.memory], worker, options, slot=node)
        pace = random.Random(self.seed * 1000 + worker)
        parameters = torch.full((SIZE,), torch.nan)
        block = self.blocks[node]
        push_pull = NodePushPull(
            NodeAggregator(block, self._team(node), member, client, lambda client: wait(client, self.strategy)),
            client,
            self.strategy,
        )
        client.join()
        base = push_pull.start(parameters)
        self.see(worker, base, parameters)
        while client.stop_notice() is None and (pace.random() >= self.leaves or worker == 0):
            batch = client.claim()
            if batch >= self.num_batches:
                break
            self.claimed.append(batch)
            for _ in range(pace.randrange(1, 1 + 300 * (1 + worker))):  # work of uneven, seeded length
                pass
            given = arrival(batch, worker=worker, base_version=base.version, provisional=base.provisional)
            base = push_pull.push_pull(self.gradient(batch), given, parameters)
            self.see(worker, base, parameters)
            if pace.random() < self.pauses:
                push_pull.pause()
                for _ in range(pace.randrange(2000)):
                    pass
                base = push_pull.start(parameters)
                self.see(worker, base, parameters)
        push_pull.stop()


def make_workers(nodes: Sequence[int], num_batches: int, *, seed: int = 0, **settings: Any) -> NodeWorkers:
    names = ("pauses", "leaves", "after_step", "gradient")
    others = {key: settings.pop(key) for key in names if key in settings}
    strategy = asynchronous(**{"reduction": "sum", **settings})
    places = num_provisional(strategy)
    layout = Layout(SIZE, sum(nodes), num_slots=len(nodes), arrivals_per_slot=max(nodes), num_provisional=places)
    memory = ThreadMemory(layout)
    store = make_store(strategy, num_workers=sum(nodes), memory=memory)
    gradient = others.pop("gradient", lambda batch: torch.full((SIZE,), value_of(batch)))
    return NodeWorkers(store, strategy, memory, num_batches, gradient, seed, nodes=nodes, **others)


def check_conservation(workers: NodeWorkers) -> None:
    assert sorted(workers.observer.batches) == sorted(workers.claimed)
    assert workers.store.parameters.tolist() == [-sum(map(value_of, workers.claimed))] * SIZE
    assert [update.version for update in workers.observer.updates] == list(range(1, workers.store.version + 1))
    values = [0.0]
    for update in workers.observer.updates:
        values.append(values[-1] - sum(value_of(one.batch) for one in update.arrivals))
    for pulls in workers.pulls.values():
        versions = [pull.version for pull in pulls]
        assert versions == sorted(versions)
        assert pulls == [Pull(version, values[version], values[version]) for version in versions]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("nodes", [(1,), (3,), (2, 3), (1, 1, 2)])
@pytest.mark.parametrize("wanted", [1, 2, "workers"])
def test_every_claimed_batch_is_in_one_update_whichever_members_pause_or_leave(
    wanted: int | str, nodes: Sequence[int], seed: int
) -> None:
    workers = make_workers(nodes, 60, seed=seed, arrivals_per_update=wanted, pauses=0.15, leaves=0.03)
    workers.run().check()
    check_conservation(workers)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("nodes", [(3,), (2, 2)])
@pytest.mark.parametrize("settings", [{"lockstep": True}, {"arrivals_per_update": 1, "synchronous_versions": 5}])
def test_lock_step_holds_even_if_members_pause_and_leave(settings: dict[str, Any], nodes: Sequence[int], seed: int) -> None:
    workers = make_workers(nodes, 60, seed=seed, pauses=0.2, leaves=0.03, **settings)
    workers.run().check()
    check_conservation(workers)
    for update in workers.observer.updates if "lockstep" in settings else workers.observer.updates[:5]:
        assert all(update.staleness(one) == 0 for one in update.arrivals)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bound", [0, 1])
def test_a_bound_that_waits_holds_among_nodes(bound: int, seed: int) -> None:
    workers = make_workers((2, 2), 60, seed=seed, arrivals_per_update=1, max_staleness=bound, pauses=0.1)
    workers.run().check()
    check_conservation(workers)
    assert max(workers.observer.stalenesses) <= bound


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("nodes", "wanted"), [((3,), 7), ((2, 2), 6), ((1, 3), "workers")])
def test_arrivals_of_a_node_name_the_parameters_they_were_computed_on(
    nodes: Sequence[int], wanted: int | str, seed: int
) -> None:
    workers = make_workers(
        nodes, 60, seed=seed, arrivals_per_update=wanted, reduction="weight_mean", provisional=True, pauses=0.15, leaves=0.03
    )
    workers.run().check()
    assert sorted(workers.observer.batches) == sorted(workers.claimed)
    expected, pulls = workers.expected(), [pull for pulls in workers.pulls.values() for pull in pulls]
    assert any(pull.provisional for pull in pulls)
    for pull in pulls:
        value = expected[pull.version, pull.provisional]
        assert pull == Pull(pull.version, value, value, pull.provisional)
    described = {(one.base_version, one.provisional) for update in workers.observer.updates for one in update.arrivals}
    assert described <= {(pull.version, pull.provisional) for pull in pulls}


def test_without_pauses_a_push_holds_all_members_in_the_order_of_their_batches() -> None:
    workers = make_workers((3,), 60, arrivals_per_update=1)
    workers.run().check()
    arrivals = [update.arrivals for update in workers.observer.updates]
    assert all([one.batch for one in each] == sorted(one.batch for one in each) for each in arrivals)
    assert {len(each) for each in arrivals[:-3]} == {3}
    check_conservation(workers)


def test_a_sum_that_is_not_finite_is_refused_with_all_its_arrivals() -> None:
    def gradient(batch: int) -> torch.Tensor:
        return torch.full((SIZE,), float("nan") if batch == 17 else 1.0)

    workers = make_workers((3,), 30, arrivals_per_update=1, gradient=gradient)
    workers.run().check()
    refused = sorted(one.batch for one, _ in workers.observer.refusals)
    assert 17 in refused and len(refused) == 3
    assert sorted([*workers.observer.batches, *refused]) == list(range(30))
    assert workers.store.parameters.tolist() == [-27.0] * SIZE


def test_a_node_may_be_larger_than_one_sum_takes() -> None:
    """A node with more members than the arithmetic sums at a time; the contributions are written by hand."""
    size, num_members = 7, 70
    memory = ThreadMemory(Layout(size, num_members, num_slots=1, arrivals_per_slot=num_members))
    block = ThreadMemory(node_layout(size, num_members, has_error=False))
    clients = [StoreClient([memory], worker, ClientOptions(), slot=0) for worker in range(num_members)]
    team = range(num_members)
    members = [NodeAggregator(block, team, worker, client, lambda _: None) for worker, client in enumerate(clients)]
    for worker in range(num_members):
        block.vector(block.layout.slot_offset(worker)).fill_(float(worker))
        words = arrival_words.to_words(Arrival(worker, worker, base_version=0, weight=1, loss=0.0))
        block.store_words(block.layout.arrival_word(worker, 0, 0), words)
        block.store(block.layout.slot_word(worker, SlotWord.PUSHED), 1)
        block.store(block.layout.worker_word(worker, WorkerWord.STATE), WorkerState.ACTIVE)
    members[0]._push_and_pull()
    assert memory.load(memory.layout.slot_word(0, SlotWord.NUM_ARRIVALS)) == num_members
    assert memory.vector(memory.layout.slot_offset(0)).tolist() == [float(sum(range(num_members)))] * size


@pytest.mark.parametrize("weight", [0, 20, 2**53 - 1, 0.1, 2.5])
def test_the_words_of_an_arrival_keep_its_weight_to_the_last_bit(weight: float) -> None:
    sent = Arrival(3, 7, base_version=5, weight=weight, loss=0.1, push=7)
    received = arrival_words.from_words(arrival_words.to_words(sent), push=7)
    assert received == sent and type(received.weight) is type(weight)


@pytest.mark.parametrize("num_later", range(MOST_MICRO_BATCHES))
def test_an_arrival_keeps_the_bases_of_its_micro_batches_in_words_and_in_json(num_later: int) -> None:
    later = tuple((2**40 + number, number % 2) for number in range(num_later))
    sent = Arrival(3, 7, base_version=5, weight=1, loss=0.1, provisional=2, push=7, later_bases=later)
    words = arrival_words.to_words(sent)
    assert len(words) == ARRIVAL_WORDS and arrival_words.from_words(words, push=7) == sent
    assert Arrival.from_json({**json.loads(json.dumps(dataclasses.asdict(sent))), "event": "arrival"}) == sent
    assert sent.bases == ((5, 2), *later)


def test_all_members_end_when_one_of_them_fails() -> None:
    def gradient(batch: int) -> torch.Tensor:
        if batch == 20:
            raise ZeroDivisionError
        return torch.ones(SIZE)

    workers = make_workers((3,), 10**9, arrivals_per_update=1, gradient=gradient)
    workers.run()
    kinds = sorted(type(error).__name__ for error in workers.failures.values())
    assert kinds == ["PeerError", "PeerError", "PeerError", "ZeroDivisionError"]
    assert all(error.is_reported for error in workers.failures.values() if isinstance(error, PeerError))


def test_a_signal_ends_all_members_and_their_claims_are_pending_or_computed_again() -> None:
    asked = StopNotice(StopKind.SIGNAL, rank=2, signal_number=15)

    def gradient(batch: int) -> torch.Tensor:
        if batch == 25:
            workers.memory.store(Word.STOP, asked.to_word())
        return torch.full((SIZE,), value_of(batch))

    workers = make_workers((2, 2), 10**9, arrivals_per_update=2, gradient=gradient)
    workers.run().check()
    assert workers.notice == asked
    decided = {*workers.observer.batches, *(one.batch for one in workers.store.pending)}
    order = workers.store.ledger.claim_order()
    assert decided | set(order.missing) == set(range(order.first_new))
    assert decided.isdisjoint(order.missing)
