"""Server and clients on real threads, and scripted schedules for interleavings that threads rarely meet."""

from __future__ import annotations

import ctypes
import functools
import itertools
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from hvd_async.config import OptimizerConfig
from hvd_async.errors import PeerError
from hvd_async.store.arrival import Refusal
from hvd_async.store.ledger import ClaimOrder
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.serve.client import ClientOptions, StoreClient
from hvd_async.store.serve.liveness import Heartbeat, Silence, WorkerWatch
from hvd_async.store.serve.readings import Base, Readings
from hvd_async.store.serve.returns import Returns
from hvd_async.store.serve.server import ServerOptions, StoreServer
from hvd_async.store.serve.stopping import StopTimeoutError
from hvd_async.store.wire.layout import (
    IDLE,
    MAX_HELD,
    MAX_STATISTICS,
    NUM_PROVISIONAL,
    NUM_RETURNS,
    Layout,
    LifeWord,
    SlotWord,
    Word,
    WorkerState,
    WorkerWord,
)
from hvd_async.store.wire.stop import StopKind, StopNotice, announce_failure
from hvd_async.system.process_state import scope_of_ids
from hvd_async.transport.inprocess import ThreadMemory
from hvd_async.vectors import arithmetic
from tests.store.stores import arrival, asynchronous, make_store, num_provisional, sgd, value_of
from tests.store.workers import Pull, Recorder, Workers

pytestmark = pytest.mark.usefixtures("quick_switches")


def make_workers(
    num_workers: int,
    num_batches: int,
    *,
    size: int = 3,
    seed: int = 0,
    num_buffers: int = 3,
    memory_type: Callable[[Layout], ThreadMemory] = ThreadMemory,
    **settings: Any,
) -> Workers:
    names = ("observer", "server", "after_step", "gradient", "optimizer", "abandons", "dies")
    others = {key: settings.pop(key) for key in names if key in settings}
    strategy = asynchronous(**{"reduction": "sum", **settings})
    memory = memory_type(Layout(size, num_workers, num_buffers, num_provisional=num_provisional(strategy)))
    store = make_store(strategy, num_workers=num_workers, memory=memory, optimizer=others.get("optimizer"))
    gradient = others.pop("gradient", lambda batch: torch.full((size,), value_of(batch)))
    return Workers(store, strategy, memory, num_batches, gradient, seed, **others)


# --- Threads ----------------------------------------------------------------------------------------------------------


class SlowReads(ThreadMemory):
    """Memory that is copied in pieces, with pauses in which the store writes: a pull must detect the torn copy."""

    def get(self, offset: int, target: torch.Tensor) -> None:
        for piece in range(0, target.numel(), 20_000):
            part = target[piece : piece + 20_000]
            super().get(offset + 4 * piece, part)
            for _ in range(2_000):
                pass


@pytest.mark.parametrize("num_buffers", [2, 3])
def test_every_pull_is_whole_and_of_the_version_it_names(num_buffers: int) -> None:
    workers = make_workers(2, 120, size=200_000, arrivals_per_update=1, num_buffers=num_buffers, memory_type=SlowReads)
    workers.run().check()
    values = [0.0]
    for update in workers.observer.updates:
        values.append(values[-1] - sum(value_of(one.batch) for one in update.arrivals))
    for pull in itertools.chain(*workers.pulls.values()):
        assert pull == Pull(pull.version, values[pull.version], values[pull.version])


@pytest.mark.parametrize("optimizer", [sgd(learning_rate=0.1, momentum=0.9), OptimizerConfig()])
@pytest.mark.parametrize("wanted", [4, "workers"])
def test_every_provisional_pull_is_whole_and_of_the_arrivals_it_names(wanted: int | str, optimizer: OptimizerConfig) -> None:
    workers = make_workers(
        3,
        100,
        size=100_000,
        arrivals_per_update=wanted,
        reduction="weight_mean",
        provisional=True,
        memory_type=SlowReads,
        optimizer=optimizer,
    )
    workers.run().check()
    assert sorted(workers.observer.batches) == list(range(100))
    expected, pulls = workers.expected(), list(itertools.chain(*workers.pulls.values()))
    assert any(pull.provisional for pull in pulls)
    for pull in pulls:
        value = expected.get((pull.version, pull.provisional))
        assert value is not None and pull == Pull(pull.version, value, value, pull.provisional)


PROVISIONAL: dict[str, dict[str, Any]] = {
    "refused": {"max_staleness": 0, "on_stale": "drop", "arrivals_per_update": 3},
    "bounded": {"max_staleness": 1, "arrivals_per_update": 2},
    "warm": {"synchronous_versions": 4, "arrivals_per_update": 3},
    "inverse": {"staleness_policy": "inverse", "arrivals_per_update": 5},
    "schedule": {"arrivals_per_update": [{"version": 0, "arrivals": 1}, {"version": 5, "arrivals": "workers"}]},
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", PROVISIONAL)
def test_an_arrival_names_the_parameters_its_gradient_was_computed_on(name: str, seed: int) -> None:
    poisoned = {13, 31}

    def gradient(batch: int) -> torch.Tensor:
        return torch.full((3,), float("nan") if batch in poisoned else value_of(batch))

    settings = {"reduction": "weight_mean", "provisional": True, **PROVISIONAL[name]}
    is_provisional = False
    for _ in range(20):  # threads occasionally run such that no gradient at all is computed on provisional parameters
        workers = make_workers(4, 90, seed=seed, gradient=gradient, **settings).run().check()
        refused = [one.batch for one, _ in workers.observer.refusals]
        assert sorted([*workers.observer.batches, *refused]) == list(range(90)) and poisoned <= set(refused)
        expected = workers.expected()
        for pull in itertools.chain(*workers.pulls.values()):
            value = expected[pull.version, pull.provisional]
            assert pull == Pull(pull.version, value, value, pull.provisional)
        described = {(one.base_version, one.provisional) for update in workers.observer.updates for one in update.arrivals}
        assert described <= expected.keys()
        if name == "bounded":
            assert max(workers.observer.stalenesses) <= 1
        if name == "warm":
            assert all(not one.provisional for update in workers.observer.updates[:4] for one in update.arrivals)
        if is_provisional := any(provisional for _, provisional in described):
            break
    assert is_provisional


@pytest.mark.parametrize(
    ("num_workers", "settings"),
    [(1, {"arrivals_per_update": "workers"}), (3, {"arrivals_per_update": 1}), (3, {"lockstep": True})],
)
def test_without_pending_arrivals_nothing_is_provisional(num_workers: int, settings: dict[str, Any]) -> None:
    workers = make_workers(num_workers, 40, reduction="weight_mean", provisional=True, **settings).run().check()
    assert workers.memory.load(Word.NEXT_PROVISIONAL) == 0
    assert not any(pull.provisional for pull in itertools.chain(*workers.pulls.values()))


def test_versions_that_a_worker_sees_never_go_back() -> None:
    workers = make_workers(3, 150, arrivals_per_update=1).run().check()
    for pulls in workers.pulls.values():
        versions = [pull.version for pull in pulls]
        assert versions == sorted(versions) and versions[-1] > 0


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("wanted", [1, 2, "workers"])
@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_every_claimed_batch_is_in_exactly_one_update_or_refusal(num_workers: int, wanted: int | str, seed: int) -> None:
    poisoned = {3, 17, 18}

    def gradient(batch: int) -> torch.Tensor:
        return torch.full((3,), float("nan") if batch in poisoned else value_of(batch))

    workers = make_workers(num_workers, 61, seed=seed, arrivals_per_update=wanted, gradient=gradient).run().check()
    assert sorted(workers.observer.batches) == [batch for batch in range(61) if batch not in poisoned]
    assert {(one.batch, refusal) for one, refusal in workers.observer.refusals} == {
        (batch, Refusal.NOT_FINITE) for batch in poisoned
    }
    assert len(workers.observer.refusals) == len(poisoned)
    assert workers.store.parameters.tolist() == [-sum(map(value_of, workers.observer.batches))] * 3
    assert workers.notice is None and workers.memory.load(Word.VERSION) == workers.store.version


@pytest.mark.parametrize("wanted", ["workers", 3, 7])
def test_lock_step_makes_the_same_updates_whatever_the_speeds(wanted: int | str) -> None:
    def gradient(batch: int) -> torch.Tensor:
        return torch.randn(3, generator=torch.Generator().manual_seed(batch))

    groups = [
        make_workers(3, 32, seed=seed, lockstep=True, arrivals_per_update=wanted, gradient=gradient).run().check()
        for seed in (1, 2)
    ]
    first, second = (
        [[(a.batch, a.base_version) for a in u.arrivals] for u in workers.observer.updates] for workers in groups
    )
    assert first == second and len(first) == 11
    assert torch.equal(groups[0].store.parameters, groups[1].store.parameters)  # the order of summation, to the last bit


@pytest.mark.parametrize("wanted", ["workers", 3, 7])
def test_in_lock_step_a_worker_continues_from_the_update_with_its_gradient(wanted: int | str) -> None:
    workers = make_workers(3, 30, lockstep=True, arrivals_per_update=wanted).run().check()
    last = dict.fromkeys(range(3), 0)
    for update in workers.observer.updates:
        for one in update.arrivals:
            assert one.base_version == last[one.worker]
            last[one.worker] = update.version


def test_a_warm_start_has_no_staleness_in_its_versions() -> None:
    workers = make_workers(3, 60, arrivals_per_update=1, synchronous_versions=5).run().check()
    for update in workers.observer.updates[:5]:
        assert [update.staleness(one) for one in update.arrivals] == [0, 0, 0]
    assert [len(update.arrivals) for update in workers.observer.updates[5:]] == [1] * 45


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("bound", "wanted"), [(0, 1), (1, 1), (1, 2), (2, 1)])
def test_a_bound_that_waits_holds(bound: int, wanted: int, seed: int) -> None:
    workers = make_workers(3, 90, seed=seed, arrivals_per_update=wanted, max_staleness=bound).run().check()
    assert max(workers.observer.stalenesses) <= bound
    assert sorted(workers.observer.batches) == list(range(90))


def test_a_worker_that_leaves_early_is_not_waited_for() -> None:
    workers = make_workers(
        3, 40, lockstep=True, arrivals_per_update="workers", after_step=lambda _, worker, steps: worker != 1 or steps < 2
    )
    workers.run().check()
    assert sorted(workers.observer.batches) == list(range(40))
    assert [len(update.arrivals) for update in workers.observer.updates] == [3, 3] + [2] * 17


@pytest.mark.parametrize("settings", [{"arrivals_per_update": 2}, {"arrivals_per_update": "workers", "lockstep": True}])
def test_a_signal_on_one_worker_ends_all(settings: dict[str, Any]) -> None:
    asked = StopNotice(StopKind.SIGNAL, rank=2, signal_number=15)

    def after_step(client: StoreClient, worker: int, num_steps: int) -> bool:
        if worker == 1 and num_steps == 3:
            client.request_stop(asked)
        return client.stop_notice() is None

    workers = make_workers(3, 10**9, after_step=after_step, **settings).run().check()
    assert workers.notice == asked
    # Worker 1 asks after 3 pushes, of which the store has accepted at least 2.
    assert workers.store.version == len(workers.observer.updates) >= 1
    # Every batch that was claimed and is in no update is pending, or is computed again by a run that resumes.
    decided = {*workers.observer.batches, *(one.batch for one in workers.store.pending)}
    order = workers.store.ledger.claim_order()
    assert decided.isdisjoint(order.batch(claim) for claim in range(100))
    assert decided | set(order.missing) == set(range(order.first_new))


def test_a_failure_on_one_worker_ends_all_and_is_marked_as_reported() -> None:
    def after_step(client: StoreClient, worker: int, num_steps: int) -> bool:
        if worker == 1 and num_steps == 3:
            raise ZeroDivisionError
        return True

    workers = make_workers(3, 10**9, lockstep=True, arrivals_per_update="workers", after_step=after_step).run()
    assert isinstance(workers.failures.pop("worker 1"), ZeroDivisionError)
    assert sorted(workers.failures) == ["store", "worker 0", "worker 2"]
    for error in workers.failures.values():
        assert isinstance(error, PeerError) and error.is_reported
        assert str(error) == "rank 99 failed; its message says why"


def test_exhausted_patience_ends_the_run() -> None:
    workers = make_workers(2, 10**9, arrivals_per_update=1, observer=Recorder(finish_at=5)).run().check()
    assert workers.notice == StopNotice(StopKind.FINISHED, rank=0)
    assert len(workers.observer.updates) == 5
    assert {refusal for _, refusal in workers.observer.refusals} <= {Refusal.AFTER_THE_END}


def test_every_evaluation_is_given_to_at_most_one_worker() -> None:
    def after_step(client: StoreClient, worker: int, num_steps: int) -> bool:
        if (version := client.take_evaluation()) is not None:
            client.report_evaluation(version, [version / 2, worker])
        return True

    options = ServerOptions(first_evaluation=2, evaluate_every=2)
    workers = make_workers(
        3, 120, arrivals_per_update=1, observer=Recorder(evaluate_every=2), server=options, after_step=after_step
    )
    workers.run().check()
    versions = [version for version, _ in workers.observer.evaluations]
    assert len(versions) == len(set(versions)) >= 10
    assert set(versions) <= set(range(2, 121, 2))
    for version, statistics in workers.observer.evaluations:
        assert statistics[0] == version / 2 and statistics[1] in (0, 1, 2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "settings",
    [{"arrivals_per_update": 1}, {"arrivals_per_update": "workers"}, {"lockstep": True}, {"max_staleness": 1}],
    ids=str,
)
def test_batches_of_workers_that_leave_are_computed_by_those_that_remain(settings: dict[str, Any], seed: int) -> None:
    chance = random.Random(seed)
    num_batches = chance.choice([9, 40])
    leaves_at = {worker: chance.randrange(num_batches // 3) for worker in range(3)}
    held = {worker: chance.randrange(1, 5) for worker in range(3)}

    def abandons(worker: int, num_steps: int) -> int:
        return held[worker] if leaves_at.get(worker) == num_steps else 0

    workers = make_workers(4, num_batches, seed=seed, abandons=abandons, **settings).run().check()
    assert sorted(workers.observer.batches) == list(range(num_batches))
    assert workers.store.ledger.num_missing(num_batches) == 0
    assert sum(update.arrivals[-1].worker == 3 for update in workers.observer.updates) > 0


def test_workers_that_wait_end_when_the_last_one_has_left() -> None:
    workers = (
        make_workers(3, 5, abandons=lambda worker, num_steps: 2 * int(num_steps == 1), arrivals_per_update=1).run().check()
    )
    assert len(workers.observer.batches) == len(set(workers.observer.batches)) <= 5


def test_more_batches_are_returned_than_the_ring_has_room_for() -> None:
    memory = ThreadMemory(Layout(1, 4))
    returns, client = Returns(memory, ClaimOrder(), None), StoreClient([memory], 3, ClientOptions())
    expected = list(range(3 * MAX_HELD))
    for worker in range(3):
        leaving = StoreClient([memory], worker, ClientOptions())
        assert [leaving.claim() for _ in range(MAX_HELD)] == expected[worker * MAX_HELD : (worker + 1) * MAX_HELD]
        leaving.leave()
        returns.take_from(worker, lambda batch: False)

    def claim() -> int:
        batch = client.claim()
        client.let_go(batch)
        return batch

    new = 3 * MAX_HELD
    assert len(expected) > NUM_RETURNS and returns.open() == expected
    assert returns.give() and not returns.give()
    found = [claim() for _ in range(NUM_RETURNS)]
    assert claim() == new and not returns.is_nothing_open()  # a new batch, until the store writes more
    assert returns.give()
    found += [claim() for _ in range(len(expected) - NUM_RETURNS)]
    assert found == expected and returns.is_nothing_open() and returns.open() == [] and claim() == new + 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("where", ["claiming", "claimed", "writing", "pushed"])
@pytest.mark.parametrize(
    "settings",
    [{"arrivals_per_update": 1}, {"arrivals_per_update": "workers"}, {"lockstep": True}, {"max_staleness": 1}],
    ids=str,
)
def test_a_run_goes_on_without_workers_that_die_anywhere(settings: dict[str, Any], where: str, seed: int) -> None:
    chance = random.Random(seed)
    num_batches = chance.choice([9, 40])
    ends_at = {worker: chance.randrange(num_batches // 4) for worker in range(2)}

    def dies(worker: int, num_steps: int) -> str:
        return where if ends_at.get(worker) == num_steps else ""

    options = ServerOptions(least_workers=1, num_batches=num_batches)
    workers = make_workers(
        4, num_batches, seed=seed, dies=dies, abandons=lambda worker, num_steps: 0, server=options, **settings
    )
    workers.run().check()
    assert sorted(workers.observer.batches) == list(range(num_batches))
    lost = sorted(worker for worker, _, _ in workers.observer.losses)
    assert lost == sorted(workers.deaths) and workers.memory.load(Word.NUM_LOST) == len(lost)
    assert all(f"worker {worker} failed" in reason for worker, reason, _ in workers.observer.losses)


def test_with_too_few_workers_left_the_run_ends_and_the_store_is_whole() -> None:
    options = ServerOptions(least_workers=2, num_batches=30)
    workers = make_workers(
        2, 30, dies=lambda worker, num_steps: "claimed" * (worker == 1 and num_steps == 3), server=options
    )
    workers.run()
    with pytest.raises(
        PeerError, match=r"worker 1 failed; .*: 1 worker is left, expected at least 2 \(strategy.min_workers\)"
    ):
        raise workers.failures["store"]


def with_a_push_of_each(num_workers: int) -> tuple[ThreadMemory, ParameterStore, list[StoreClient]]:
    """Return a store to which each of its workers has pushed once, its memory, and the workers' clients."""
    memory = ThreadMemory(Layout(4, num_workers))
    store = make_store(asynchronous(), num_workers=num_workers, memory=memory)
    clients = [StoreClient([memory], worker, ClientOptions()) for worker in range(num_workers)]
    for worker, client in enumerate(clients):
        client.push(torch.ones(4), [arrival(client.claim(), worker=worker)])
    return memory, store, clients


@pytest.mark.parametrize(("least_workers", "is_at_end"), [(1, False), (2, True)])
def test_the_last_worker_may_die_when_the_others_have_left_at_the_end(least_workers: int, is_at_end: bool) -> None:
    (memory, store, clients), observer = with_a_push_of_each(2), Recorder()
    clients[0].leave()
    memory.store(Word.NOTHING_OPEN, int(is_at_end))
    script = scripted({3: lambda: set_state(memory, 1, WorkerState.FAILED)})
    options = ServerOptions(least_workers=least_workers, num_batches=2)
    assert StoreServer(store, memory, observer, options).serve(script) is None
    assert sorted(observer.batches) == [0, 1] and [worker for worker, _, _ in observer.losses] == [1]


@pytest.mark.parametrize(
    ("failing", "is_only_store", "is_none_left"), [(2, True, True), (2, False, False), (1, True, False)]
)
def test_the_last_rank_of_a_run_knows_that_it_is_alone(failing: int, is_only_store: bool, is_none_left: bool) -> None:
    """Not while another rank has a part of the store, or a worker lives without which the run would not go on."""
    memory, store, _ = with_a_push_of_each(2)

    def fail() -> None:
        for worker in range(failing):
            set_state(memory, worker, WorkerState.FAILED)

    options = ServerOptions(least_workers=3 - failing, num_batches=90, is_only_store=is_only_store)
    with pytest.raises(PeerError) as caught:
        StoreServer(store, memory, Recorder(), options).serve(scripted({3: fail}))
    assert (caught.value.is_none_left, caught.value.exit_status) == (is_none_left, 1)


def test_workers_that_fail_together_are_told_together() -> None:
    memory, store, _ = with_a_push_of_each(4)

    def fail() -> None:
        for worker in (3, 0, 2):
            set_state(memory, worker, WorkerState.FAILED)

    server = StoreServer(store, memory, Recorder(), ServerOptions(least_workers=2, num_batches=90))
    with pytest.raises(PeerError) as caught:
        server.serve(scripted({3: fail}))
    left = "1 worker is left, expected at least 2 (strategy.min_workers); the store's state is saved"
    assert str(caught.value) == f"workers 0, 2, 3 failed; their messages say why: {left}"
    assert caught.value.exit_status == 1 and not caught.value.is_none_left


def test_nothing_that_a_dismissed_worker_pushes_counts() -> None:
    options, has_pushed = ServerOptions(least_workers=1, num_batches=6), threading.Event()

    def after_step(client: StoreClient, worker: int, num_steps: int) -> bool:
        if worker == 0 and num_steps == 1:
            assert has_pushed.wait(60.0)
        if worker == 1 and num_steps == 1:
            workers._die(1)
            while not workers.memory.load(workers.memory.layout.worker_word(1, WorkerWord.DISMISSED)):
                time.sleep(0.001)
            assert client.claim() < 6
            with pytest.raises(PeerError, match="worker 1 was taken for dead"):
                client.push(torch.full((3,), 1e6), [arrival(5, worker=1)])
            word = workers.memory.layout.slot_word(1, SlotWord.PUSHED)
            workers.memory.store(word, workers.memory.load(word) + 1)  # a push that began before
            has_pushed.set()
            return False
        return True

    workers = make_workers(
        2, 6, arrivals_per_update=1, after_step=after_step, server=options, abandons=lambda worker, num_steps: 0
    )
    workers.run().check()
    assert sorted(workers.observer.batches) == list(range(6)) and len(workers.observer.losses) == 1


# --- Scripts: one thread, and the store's turns counted -----------------------------------------------------------------


def announce(memory: ThreadMemory, worker: int, version: int) -> None:
    memory.store(memory.layout.slot_word(worker, SlotWord.BASE_VERSION), version)


def set_state(memory: ThreadMemory, worker: int, state: WorkerState) -> None:
    memory.store(memory.layout.worker_word(worker, WorkerWord.STATE), state)


def scripted(turns: dict[int, Callable[[], None]], limit: int = 1000) -> Callable[[], None]:
    """Return a `stop_requested` that acts at the beginning of some of the server's turns (0, 1, ...), and never asks to
    stop.
    """
    counter = itertools.count()

    def stop_requested() -> None:
        turn = next(counter)
        assert turn < limit, "the server does not end"
        turns.get(turn, lambda: None)()

    return stop_requested


def test_no_version_follows_the_last_even_if_every_slot_is_full() -> None:
    memory, observer = ThreadMemory(Layout(4, 4)), Recorder()
    store = make_store(asynchronous(arrivals_per_update=1), num_workers=4, memory=memory)
    for worker in range(4):
        client = StoreClient([memory], worker, ClientOptions())
        client.push(torch.ones(4), [arrival(worker, worker=worker)])
        client.leave()
    notice = StoreServer(store, memory, observer, ServerOptions(last_version=2)).serve(scripted({}))
    assert notice == StopNotice(StopKind.FINISHED, rank=0)
    assert store.version == 2 and store.parameters.tolist() == [-2.0] * 4
    assert [(one.batch, why) for one, why in observer.refusals] == [(2, Refusal.AFTER_THE_END), (3, Refusal.AFTER_THE_END)]


def test_workers_stop_waiting_for_a_version_whose_sum_is_not_finite() -> None:
    """Store and worker run in one thread: the store's turn comes while the worker waits."""
    memory = ThreadMemory(Layout(4, 1))
    options = ClientOptions(waits_for_stragglers=True, store_timeout_seconds=0.3)
    client = StoreClient([memory], 0, options)
    memory.store(Word.NEXT_VERSION, 1)  # version 1 is announced
    given_up = []

    def give_up(word: int) -> None:
        if word == Word.VERSION and memory.load(memory.layout.slot_word(0, SlotWord.BASE_VERSION)) == IDLE:
            memory.store(Word.NEXT_VERSION, 0)  # as the server does when there is no next version after all
            given_up.append(True)

    parameters = torch.empty(4)
    with hooked_loads(memory, give_up):
        assert client.pull(parameters) == 0
    assert given_up


class hooked_loads:
    """Call `hook(word)` before every load of `memory` inside the block, except loads by the hook itself."""

    def __init__(self, memory: ThreadMemory, hook: Callable[[int], None]) -> None:
        self._memory, self._hook, self._load, self._inside = memory, hook, memory.load, False

    def __enter__(self) -> None:
        setattr(self._memory, "load", self._loading)  # noqa: B010  # mypy: a method is not to be assigned to

    def __exit__(self, *_: object) -> None:
        del self._memory.__dict__["load"]

    def _loading(self, word: int) -> int:
        if not self._inside:
            self._inside = True
            try:
                self._hook(word)
            finally:
                self._inside = False
        return self._load(word)


def show(memory: ThreadMemory, number: int, version: int, arrivals: int) -> None:
    """Act like a store that makes provisional parameters; all elements equal their number."""
    place = number % NUM_PROVISIONAL
    memory.store(Word.NEXT_PROVISIONAL, number)
    memory.vector(memory.layout.provisional_offset(number)).fill_(float(number))
    memory.store(Word.PROVISIONAL_VERSION + place, version)
    memory.store(Word.PROVISIONAL_ARRIVALS + place, arrivals)
    memory.store(Word.PROVISIONAL, number)


def publish(memory: ThreadMemory, version: int) -> None:
    """Act like a store that makes a version; all elements equal its negative."""
    memory.store(Word.NEXT_VERSION, version)
    memory.vector(memory.layout.published_offset(version)).fill_(-float(version))
    memory.store(Word.VERSION, version)


class Interrupted(ThreadMemory):
    """During each copy out of this memory, the next action of `meanwhile` runs."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.meanwhile: list[Callable[[], object]] = []

    def get(self, offset: int, target: torch.Tensor) -> None:
        super().get(offset, target[:1])
        if self.meanwhile:
            self.meanwhile.pop(0)()
        super().get(offset + 4, target[1:])


class Reader:
    """A block without a store, and a worker that pulls from it."""

    def __init__(self) -> None:
        self.memory = Interrupted(Layout(4, 1, num_provisional=NUM_PROVISIONAL))
        self.client = StoreClient([self.memory], 0, ClientOptions(pulls_provisional=True))
        self.parameters = torch.full((4,), torch.nan)

    def pull(self) -> tuple[Base, list[float]]:
        self.client.pull(self.parameters)
        return self.client.base, self.parameters.tolist()


def test_provisional_parameters_are_read_if_they_are_on_top_of_the_newest_version() -> None:
    reader = Reader()
    memory = reader.memory
    publish(memory, 1)
    assert reader.pull() == (Base(1), [-1.0] * 4)
    show(memory, 1, 1, 3)
    assert reader.pull() == (Base(1, 3, 1), [1.0] * 4)
    show(memory, 2, 1, 4)
    assert reader.pull() == (Base(1, 4, 2), [2.0] * 4)
    publish(memory, 2)
    assert reader.pull() == (Base(2), [-2.0] * 4)


def test_a_torn_copy_of_provisional_parameters_does_not_pass_for_the_version_that_was_held() -> None:
    reader = Reader()
    memory = reader.memory
    publish(memory, 1)
    reader.pull()
    show(memory, 1, 1, 1)
    memory.meanwhile = [lambda: [show(memory, number, 1, number) for number in (2, 3)]]
    assert reader.pull() == (Base(1), [-1.0] * 4)
    show(memory, 4, 1, 4)
    memory.meanwhile = [lambda: show(memory, 5, 1, 5)]  # in the other vector
    assert reader.pull() == (Base(1, 4, 4), [4.0] * 4)


def test_a_description_that_is_overwritten_while_it_is_read_is_detected() -> None:
    reader = Reader()
    memory = reader.memory
    publish(memory, 1)
    show(memory, 1, 1, 1)
    load_words, numbers = memory.load_words, itertools.count(2)

    def load_late(first: int, count: int) -> list[int]:
        for number in itertools.islice(numbers, 2):
            show(memory, number, 1, number)
        return load_words(first, count)

    setattr(memory, "load_words", load_late)  # noqa: B010  # mypy: a method is not to be assigned to
    assert reader.pull() == (Base(1), [-1.0] * 4)


def test_a_version_published_during_the_check_is_read_with_its_provisional_parameters() -> None:
    """On top of the previous version there may be less than the worker pushed."""
    reader = Reader()
    memory = reader.memory
    publish(memory, 1)
    show(memory, 1, 1, 1)
    news = [2]

    def late(word: int) -> None:
        if word == Word.PROVISIONAL and news:
            version = news.pop()
            publish(memory, version)
            show(memory, 2, version, 1)

    with hooked_loads(memory, late):
        assert reader.pull() == (Base(2, 1, 2), [2.0] * 4)


class Written(ThreadMemory):
    """A block that records which words were written, in order."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.words: list[tuple[int, int]] = []

    def store(self, word: int, value: int) -> None:
        self.words.append((word, value))
        super().store(word, value)


Clients = Sequence[StoreClient]


def serve_provisional(turns: dict[int, Callable[[Clients], object]]) -> tuple[Written, ParameterStore, Recorder]:
    """Run a store with N = 3 and three workers, who make version 1 in turn 0, act as `turns` say at the beginnings of
    turns, and leave.
    """
    strategy = asynchronous(provisional=True, arrivals_per_update=3)
    memory, observer = Written(Layout(4, 3, num_provisional=NUM_PROVISIONAL)), Recorder()
    store = make_store(strategy, num_workers=3, memory=memory)
    clients = [StoreClient([memory], worker, ClientOptions(store_timeout_seconds=1.0)) for worker in range(3)]

    def begin() -> None:
        for batch, client in enumerate(clients):
            set_state(memory, batch, WorkerState.ACTIVE)
            push(client, batch, base_version=0)

    def leave() -> None:
        for client in clients:
            client.leave()

    script = {turn: functools.partial(do, clients) for turn, do in turns.items()}
    StoreServer(store, memory, observer, ServerOptions()).serve(scripted({0: begin, **script, max(turns) + 1: leave}))
    return memory, store, observer


def push(client: StoreClient, batch: int, value: float = 1.0, base_version: int = 1) -> None:
    client.push(torch.full((4,), value), [arrival(batch, worker=batch % 3, base_version=base_version)])


def test_owners_of_full_slots_are_notified_together_once_their_parameters_can_be_read() -> None:
    def two_push(clients: Clients) -> None:
        push(clients[0], 3)
        push(clients[1], 4)

    memory, store, _ = serve_provisional({1: two_push})
    assert store.version == 2  # its third arrival never came: pending arrivals are applied at the end
    drained = [memory.layout.slot_word(slot, SlotWord.DRAINED) for slot in range(3)]
    words = (
        *drained,
        Word.PROVISIONAL,
        Word.NEXT_PROVISIONAL,
        *range(Word.PROVISIONAL_VERSION, Word.PROVISIONAL_ARRIVALS + NUM_PROVISIONAL),
    )
    written = [pair for pair in memory.words if pair[0] in words]
    place = 1 % NUM_PROVISIONAL
    assert sorted(written[:3]) == [(word, 1) for word in drained]  # by version 1
    assert written[3:7] == [
        (Word.NEXT_PROVISIONAL, 1),
        (Word.PROVISIONAL_VERSION + place, 1),
        (Word.PROVISIONAL_ARRIVALS + place, 2),
        (Word.PROVISIONAL, 1),
    ]
    assert sorted(written[7:]) == [(drained[0], 2), (drained[1], 2)]


def test_a_refused_gradient_makes_nothing_provisional() -> None:
    memory, store, observer = serve_provisional(
        {1: lambda clients: push(clients[0], 3), 2: lambda clients: push(clients[1], 4, float("nan"))}
    )
    assert [one.batch for one, _ in observer.refusals] == [4] and store.version == 2
    assert memory.load(Word.PROVISIONAL) == memory.load(Word.NEXT_PROVISIONAL) == 1
    assert memory.load(memory.layout.slot_word(1, SlotWord.DRAINED)) == 2  # its owner was notified all the same


def test_provisional_parameters_of_a_refused_sum_are_withdrawn() -> None:
    seen = []

    def look_and_push(clients: Clients, batch: int, value: float) -> None:
        reader = StoreClient(clients[0]._windows, 0, ClientOptions(pulls_provisional=True))
        reader.pull(torch.empty(4))
        seen.append(reader.base)
        push(clients[batch % 3], batch, value)

    values = {3: 1.0, 4: 1.0, 5: 3e38, 6: 1.0, 7: 1.0}
    turns = {batch - 2: functools.partial(look_and_push, batch=batch, value=value) for batch, value in values.items()}
    _, store, observer = serve_provisional(turns)
    assert {(one.batch, why) for one, why in observer.refusals} == {(n, Refusal.SUM_NOT_FINITE) for n in (3, 4, 5)}
    assert seen == [Base(1), Base(1, 1, 1), Base(1, 2, 2), Base(1), Base(1, 1, 3)] and store.version == 2


class AtPublication(ThreadMemory):
    """Calls back while version 1 is being published, when a worker may still announce version 0."""

    def __init__(self, layout: Layout, callback: Callable[[], None]) -> None:
        super().__init__(layout)
        self._callback = callback

    def store(self, word: int, value: int) -> None:
        if word == Word.VERSION and value == 1:
            self._callback()
        super().store(word, value)


def test_parameters_stay_for_a_worker_that_announced_their_version_at_the_last_moment() -> None:
    strategy = asynchronous(arrivals_per_update=1, staleness_policy="delay_compensation", delay_compensation=0.5)
    memory = AtPublication(Layout(4, 2), lambda: announce(memory, 1, 0))
    store = make_store(strategy, num_workers=2, memory=memory)
    quick, late = (StoreClient([memory], worker, ClientOptions()) for worker in range(2))

    def begin() -> None:
        announce(memory, 1, IDLE)
        set_state(memory, 1, WorkerState.ACTIVE)
        quick.push(torch.full((4,), 2.0), [arrival(0)])
        quick.leave()

    def end() -> None:
        late.push(torch.full((4,), 2.0), [arrival(1, worker=1, base_version=0)])
        late.leave()

    StoreServer(store, memory, Recorder(), ServerOptions()).serve(scripted({0: begin, 2: end}))
    # -2, then the gradient 2 corrected by 0.5 * 2 * 2 * (-2 - 0) = -4: -2 - (-2) = 0.
    assert store.parameters.tolist() == [0.0] * 4


def test_a_slot_is_free_after_its_gradient_was_refused_because_another_worker_left() -> None:
    """The sum overflows when worker 1 leaves; worker 0, which waits to push again, may then push."""

    def gradient(batch: int) -> torch.Tensor:
        return torch.full((3,), 3e38 if batch == 0 else 1.0)

    def after_step(client: StoreClient, worker: int, num_steps: int) -> bool:
        return worker == 0

    workers = make_workers(2, 5, arrivals_per_update="workers", gradient=gradient, after_step=after_step).run().check()
    refused = [one.batch for one, why in workers.observer.refusals if why is Refusal.SUM_NOT_FINITE]
    assert refused in ([0], [0, 1])  # also batch 1, if worker 0 pushed it before the other left
    assert workers.observer.batches == [batch for batch in range(5) if batch not in refused]


def test_the_last_gradient_of_a_worker_that_has_left_still_counts() -> None:
    memory, observer = ThreadMemory(Layout(4, 2)), Recorder()
    store = make_store(asynchronous(), num_workers=2, memory=memory)
    for worker in range(2):
        client = StoreClient([memory], worker, ClientOptions())
        client.push(torch.ones(4), [arrival(worker, worker=worker)])
        client.leave()
    StoreServer(store, memory, observer, ServerOptions()).serve(scripted({}))
    assert [[one.batch for one in update.arrivals] for update in observer.updates] == [[0, 1]]


def test_a_worker_that_leaves_completes_the_update_of_the_others() -> None:
    memory, observer = ThreadMemory(Layout(4, 2)), Recorder()
    store = make_store(asynchronous(), num_workers=2, memory=memory)
    client = StoreClient([memory], 0, ClientOptions())
    versions: list[int] = []
    script = scripted(
        {
            0: lambda: client.push(torch.ones(4), [arrival(0)]),
            3: lambda: versions.append(store.version),
            4: lambda: set_state(memory, 1, WorkerState.LEFT),
            6: lambda: versions.append(store.version),
            7: client.leave,
        }
    )
    StoreServer(store, memory, observer, ServerOptions()).serve(script)
    assert versions == [0, 1]


def test_a_gradient_under_way_holds_back_the_update_that_would_leave_it_too_stale() -> None:
    memory = ThreadMemory(Layout(4, 2))
    store, observer = make_store(asynchronous(arrivals_per_update=1, max_staleness=0), num_workers=2), Recorder()
    quick, slow = (StoreClient([memory], worker, ClientOptions()) for worker in range(2))
    versions: list[int] = []

    def begin() -> None:
        set_state(memory, 1, WorkerState.ACTIVE)
        announce(memory, 1, 0)
        quick.push(torch.ones(4), [arrival(0)])

    def end() -> None:
        versions.append(store.version)
        slow.push(torch.ones(4), [arrival(1, worker=1)])
        slow.leave()
        quick.leave()

    StoreServer(store, memory, observer, ServerOptions()).serve(scripted({0: begin, 5: end}))
    assert versions == [0]
    assert [[one.batch for one in update.arrivals] for update in observer.updates] == [[0, 1]]


def test_claims_follow_the_order_of_a_resumed_run() -> None:
    memory = ThreadMemory(Layout(4, 2))
    options = ClientOptions(claim_order=ClaimOrder(missing=(3,), first_new=7))
    clients = [StoreClient([memory], worker, options) for worker in range(2)]
    assert [clients[claim % 2].claim() for claim in range(4)] == [3, 7, 8, 9]


def test_evaluations_are_handed_out_in_turn() -> None:
    memory = ThreadMemory(Layout(4, 2))
    memory.store(Word.FIRST_EVALUATION, 20)
    memory.store(Word.EVALUATE_EVERY, 10)
    first, second = (StoreClient([memory], worker, ClientOptions()) for worker in range(2))
    assert first.take_evaluation() is None
    memory.store(Word.EVALUATIONS_DUE, 3)
    assert [first.take_evaluation(), second.take_evaluation(), first.take_evaluation()] == [20, 30, 40]
    assert first.take_evaluation() is None and second.take_evaluation() is None


def test_a_worker_that_lost_a_claim_to_an_evaluation_leaves_the_next_one_open() -> None:
    memory = ThreadMemory(Layout(4, 2))
    memory.store(Word.FIRST_EVALUATION, 20)
    memory.store(Word.EVALUATE_EVERY, 10)
    memory.store(Word.EVALUATIONS_DUE, 1)
    first, second = (StoreClient([memory], worker, ClientOptions()) for worker in range(2))
    taken: list[int | None] = []
    original = memory.compare_swap

    def first_claims_before(word: int, expected: int, value: int) -> int:
        memory.__dict__.pop("compare_swap")
        taken.append(first.take_evaluation())
        return original(word, expected, value)

    setattr(memory, "compare_swap", first_claims_before)  # noqa: B010  # mypy: a method is not to be assigned to
    assert second.take_evaluation() is None and taken == [20]
    memory.store(Word.EVALUATIONS_DUE, 3)
    assert (first.take_evaluation(), second.take_evaluation()) == (30, 40)


def test_too_many_statistics_are_refused() -> None:
    client = StoreClient([ThreadMemory(Layout(4, 1))], 0, ClientOptions())
    with pytest.raises(ValueError, match=f"got {MAX_STATISTICS + 1} numbers, expected at most {MAX_STATISTICS}"):
        client.report_evaluation(1, [0.0] * (MAX_STATISTICS + 1))


def test_the_first_request_to_stop_counts() -> None:
    memory = ThreadMemory(Layout(4, 1))
    client = StoreClient([memory], 0, ClientOptions())
    client.request_stop(StopNotice(StopKind.SIGNAL, 1, 2))
    client.request_stop(StopNotice(StopKind.SIGNAL, 1, 15))
    assert client.stop_notice() == StopNotice(StopKind.SIGNAL, 1, 2)


def test_a_failure_outlives_every_request_to_stop() -> None:
    memory = ThreadMemory(Layout(4, 1))
    client = StoreClient([memory], 0, ClientOptions())
    announce_failure(memory, 3)
    client.request_stop(StopNotice(StopKind.SIGNAL, 1, 15))
    with pytest.raises(PeerError, match="rank 3 failed"):
        client.stop_notice()


# --- A reader that is slower than the store ---------------------------------------------------------------------------


class SlowMemory(ThreadMemory):
    """While a worker copies parameters out of this memory, the store makes as many versions as it can."""

    def __init__(self, layout: Layout, num_versions: int) -> None:
        super().__init__(layout)
        self.advance: Callable[[], None] = lambda: None
        self.num_versions = num_versions
        self.num_copies = 0

    def get(self, offset: int, target: torch.Tensor) -> None:
        self.num_copies += 1
        for _ in range(self.num_versions):
            self.advance()
        super().get(offset, target)


@pytest.mark.parametrize("num_versions", [1, 2, 3, 50])
@pytest.mark.parametrize("num_buffers", [2, 3])
def test_a_reader_slower_than_the_store_eventually_gets_a_whole_version(num_buffers: int, num_versions: int) -> None:
    """After two torn copies the store waits for the reader."""
    layout = Layout(4, 2, num_buffers=num_buffers)
    memory = SlowMemory(layout, num_versions)
    store = make_store(asynchronous(arrivals_per_update=1), num_workers=2, memory=memory)
    server = StoreServer(store, memory, Recorder(), ServerOptions())
    server._publish()
    batches = itertools.count()

    def advance() -> None:
        if not store.pending:
            store.accept([arrival(next(batches), base_version=store.version)], Gradient.measure(torch.ones(4)))
        server._make_version()

    memory.advance = advance
    client = StoreClient([memory], 1, ClientOptions())
    parameters = torch.full((4,), torch.nan)
    for _ in range(3):
        before, memory.num_copies = store.version, 0
        version = client.pull(parameters)
        assert parameters.tolist() == [-float(version)] * 4 and version >= before
        assert memory.num_copies <= 3
        advance()  # no reader holds the store back any more
    assert store.version > 3


def test_a_store_that_waits_for_a_reader_continues_after_the_read() -> None:
    memory = ThreadMemory(Layout(4, 1, num_buffers=2))
    store = make_store(asynchronous(arrivals_per_update=1), memory=memory)
    server = StoreServer(store, memory, Recorder(), ServerOptions())
    readings = Readings(memory, 0)
    assert readings.reserve(0)
    for batch in range(2):
        store.accept([arrival(batch, base_version=batch)], Gradient.measure(torch.ones(4)))
        assert server._make_version() == (batch == 0)  # version 2 would overwrite version 0
    assert memory.load(Word.NEXT_VERSION) == store.version == 1
    readings.release()
    assert server._make_version() and store.version == 2


def test_a_late_reader_reads_a_newer_version() -> None:
    memory = ThreadMemory(Layout(4, 1, num_buffers=2))
    memory.store(Word.NEXT_VERSION, 2)  # it is being written over version 0
    readings = Readings(memory, 0)
    assert not readings.reserve(0) and readings.reserve(1)


def test_a_worker_that_takes_over_a_slot_withdraws_the_version_pulled_ahead() -> None:
    memory = ThreadMemory(Layout(4, 2, num_slots=1))
    word = memory.layout.slot_word(0, SlotWord.NEXT_BASE_VERSION)
    first, second = (StoreClient([memory], worker, ClientOptions(), slot=0) for worker in range(2))
    first.keep_announced(0)
    first.pull(torch.zeros(4))
    assert memory.load(word) == 0
    second.take_over(first.base)
    second.push(torch.ones(4), [arrival(0, worker=1)])
    assert memory.load(word) == IDLE


def test_a_version_pulled_ahead_stays_announced_until_it_is_computed_on() -> None:
    memory = ThreadMemory(Layout(4, 1))
    for word in (SlotWord.BASE_VERSION, SlotWord.NEXT_BASE_VERSION):
        memory.store(memory.layout.slot_word(0, word), IDLE)
    client = StoreClient([memory], 0, ClientOptions())

    def announced() -> list[int]:
        words = (SlotWord.BASE_VERSION, SlotWord.NEXT_BASE_VERSION)
        return [memory.load(memory.layout.slot_word(0, word)) for word in words]

    def make_version(version: int) -> None:
        memory.store(Word.NEXT_VERSION, version)
        memory.store(Word.VERSION, version)

    parameters = torch.zeros(4)
    client.pull(parameters)
    assert announced() == [0, IDLE]
    client.keep_announced(0)  # the worker computes on it
    make_version(1)
    client.pull(parameters)
    assert announced() == [0, 1]
    client.keep_announced(1)  # now on this one
    client.push(torch.ones(4), [arrival(0)])
    assert announced() == [1, IDLE]
    make_version(2)
    client.pull(parameters)
    assert announced() == [1, 2]
    client.keep_announced(IDLE)  # the last step: nothing is computed meanwhile
    memory.store(memory.layout.slot_word(0, SlotWord.FREED), 1)
    client.push(torch.ones(4), [arrival(1, base_version=1)])
    assert announced() == [IDLE, IDLE]


# --- Silence ----------------------------------------------------------------------------------------------------------

IMPATIENT = ClientOptions(store_timeout_seconds=0.2)


@pytest.mark.parametrize("waits", ["join", "push", "released"])
def test_a_worker_gives_up_on_a_store_that_is_silent(waits: str) -> None:
    client = StoreClient([ThreadMemory(Layout(4, 1))], 0, IMPATIENT)
    if waits != "join":
        client.push(torch.ones(4), [arrival(0)])  # the slot was free
    actions: dict[str, Callable[[], object]] = {
        "join": client.join,
        "push": lambda: client.push(torch.ones(4), [arrival(1)]),
        "released": client.wait_released,
    }
    with pytest.raises(
        PeerError, match=r"the store gave no sign of life for .* \(strategy.store_timeout_seconds\)"
    ) as caught:
        actions[waits]()
    assert not caught.value.is_reported


def test_the_store_gives_up_on_a_worker_that_is_silent() -> None:
    memory = ThreadMemory(Layout(4, 2))
    store = make_store(asynchronous(), num_workers=2, memory=memory)
    StoreClient([memory], 0, ClientOptions()).leave()
    server = StoreServer(store, memory, Recorder(), ServerOptions(worker_timeout_seconds=0.2))
    with pytest.raises(PeerError, match=r"worker 1 gave no sign of life for .* \(strategy.worker_timeout_seconds\)"):
        server.serve(lambda: None)


def test_the_store_distinguishes_a_dead_process_from_one_of_another_namespace() -> None:
    """Process ids of a container of its own mean nothing here."""
    memory = ThreadMemory(Layout(4, 1))
    process, scope = (
        memory.layout.worker_word(0, WorkerWord.HEARTBEAT + word) for word in (LifeWord.PROCESS, LifeWord.SCOPE)
    )
    watch, other = WorkerWatch(memory, 600.0), WorkerWatch(memory, 600.0)
    assert watch._why_dead(0) == ""  # it has not come yet
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    memory.store(scope, scope_of_ids() + 1)
    memory.store(process, gone.pid)
    assert other._why_dead(0) == ""
    memory.store(scope, scope_of_ids())  # never seen alive
    assert watch._why_dead(0) == f"worker 0 is dead: its process {gone.pid} is gone"


def test_a_near_worker_that_is_stopped_is_dead_after_the_timeout_and_one_that_is_busy_is_not() -> None:
    memory = ThreadMemory(Layout(4, 1))
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        StoreClient([memory], 0, ClientOptions())
        memory.store(memory.layout.worker_word(0, WorkerWord.HEARTBEAT + LifeWord.SCOPE), scope_of_ids())
        memory.store(memory.layout.worker_word(0, WorkerWord.HEARTBEAT + LifeWord.PROCESS), busy.pid)
        watch, hasty = WorkerWatch(memory, 0.3), WorkerWatch(memory, 0.3, hang_timeout_seconds=0.6)
        until(lambda: "hangs: no sign of life for" in hasty._why_dead(0))
        assert watch._why_dead(0) == ""  # it may hold Python's lock
        busy.send_signal(signal.SIGSTOP)
        until(lambda: f"process {busy.pid} is stopped for" in watch._why_dead(0))
        memory.store(memory.layout.worker_word(0, WorkerWord.HEARTBEAT), 1)
        assert watch._why_dead(0) == ""  # it went on meanwhile
        watch.end(0)
        assert busy.wait() == -signal.SIGKILL


def test_a_worker_that_ignores_a_request_to_stop_is_waited_for_as_long_as_configured() -> None:
    memory = ThreadMemory(Layout(4, 2))
    store = make_store(asynchronous(), num_workers=2, memory=memory)
    StoreClient([memory], 0, ClientOptions()).leave()
    server = StoreServer(store, memory, Recorder(), ServerOptions(stop_timeout_seconds=0.2))
    with pytest.raises(StopTimeoutError, match=r"worker 1 did not answer a request to stop for 0 s"):
        server.serve(lambda: StopNotice(StopKind.SIGNAL, 0, 15))


def test_a_heartbeat_continues_while_its_owner_computes_and_stops_if_it_hangs() -> None:
    memory = ThreadMemory(Layout(4, 1))
    silence = Silence()
    with Heartbeat(memory, Word.STORE_HEARTBEAT, hang_timeout_seconds=0.6) as heartbeat:
        until(lambda: memory.load(Word.STORE_HEARTBEAT) >= 3)
        until(lambda: silence.seconds(memory.load(Word.STORE_HEARTBEAT)) > 0.6)  # nothing touched it
        before = memory.load(Word.STORE_HEARTBEAT)
        heartbeat.touch()
        until(lambda: memory.load(Word.STORE_HEARTBEAT) > before)


@pytest.mark.skipif(not arithmetic.is_compiled(), reason="needs the C extension")
def test_a_heartbeat_continues_while_a_step_holds_pythons_lock() -> None:
    memory, before = ThreadMemory(Layout(4, 1)), sys.getswitchinterval()
    sys.setswitchinterval(3600.0)  # no other thread of Python gets the lock between two holds
    try:
        with Heartbeat(memory, Word.STORE_HEARTBEAT):
            deadline = time.monotonic() + 60.0
            while memory.load(Word.STORE_HEARTBEAT) < 3:
                ctypes.PyDLL(None).usleep(10_000)
                assert time.monotonic() < deadline
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_a_process_without_which_others_go_on_ends_itself_when_it_hangs(is_compiled: bool) -> None:
    program = """
import sys, time
from hvd_async.store.serve.liveness import Heartbeat
from hvd_async.store.wire.layout import Layout, Word
from hvd_async.transport.inprocess import ThreadMemory
from hvd_async.vectors import arithmetic
if sys.argv[1] == "False":
    arithmetic._c = None
memory = ThreadMemory(Layout(4, 1))
with Heartbeat(memory, Word.STORE_HEARTBEAT, hang_timeout_seconds=0.1, ends_process=True):
    while memory.load(Word.STORE_HEARTBEAT) != -1:
        time.sleep(0.01)
    print("hung", flush=True)
    time.sleep(3600)
"""
    done = subprocess.run([sys.executable, "-c", program, str(is_compiled)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "hung\n")


def until(is_over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not is_over():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # another thread counts
