"""Workers that join a run under way, as threads, and what the store does with their places."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from typing import Any

import pytest
import torch

from hvd_async.errors import SetupError
from hvd_async.store.serve.joining import take_place
from hvd_async.store.serve.liveness import WorkerWatch
from hvd_async.store.serve.server import ServerOptions
from hvd_async.store.serve.vacancies import Vacancies
from hvd_async.store.wire.layout import CLAIMING, Layout, LifeWord, Word, WorkerState, WorkerWord
from hvd_async.system.process_state import scope_of_ids
from hvd_async.transport.inprocess import ThreadMemory
from tests.store.stores import asynchronous, make_store, num_provisional, value_of
from tests.store.workers import Workers

pytestmark = pytest.mark.usefixtures("quick_switches")
SIZE = 3


def make_workers(num_workers: int, num_places: int, num_batches: int, seed: int, **settings: Any) -> Workers:
    others = {key: settings.pop(key) for key in ("joins_at", "dies", "after_step") if key in settings}
    strategy = asynchronous(**{"reduction": "sum", **settings})
    memory = ThreadMemory(Layout(SIZE, num_places, num_provisional=num_provisional(strategy)))
    store = make_store(strategy, num_workers=num_workers, memory=memory)
    options = ServerOptions(num_workers=num_workers, least_workers=1, num_batches=num_batches)
    return Workers(
        store,
        strategy,
        memory,
        num_batches,
        lambda batch: torch.full((SIZE,), value_of(batch)),
        seed,
        server=options,
        abandons=lambda worker, num_steps: 0,
        **others,
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "settings",
    [
        {"arrivals_per_update": 1},
        {"arrivals_per_update": "workers"},
        {"lockstep": True},
        {"max_staleness": 1},
        {"arrivals_per_update": 3, "provisional": True, "reduction": "weight_mean"},
    ],
    ids=str,
)
def test_workers_that_join_share_the_batches(settings: dict[str, Any], seed: int) -> None:
    chance = random.Random(seed)
    joins_at = [chance.randrange(0, 30), chance.randrange(0, 12)]
    workers = make_workers(2, 4, 60, seed, joins_at=joins_at, **settings).run().check()
    assert sorted(workers.observer.batches) == list(range(60))
    assert sorted(workers.observer.newcomers) == [2, 3][: len(workers.observer.newcomers)]
    assert len(workers.observer.newcomers) + len(workers.refusals) + workers.num_late == 2
    assert all("the run is at its end" in refusal for refusal in workers.refusals)
    by = {one.worker for update in workers.observer.updates for one in update.arrivals}
    assert by <= {0, 1, *workers.observer.newcomers}


def test_in_lock_step_an_update_has_one_arrival_more_when_a_worker_has_joined() -> None:
    workers = make_workers(2, 3, 80, 0, joins_at=[3], lockstep=True).run().check()
    sizes = [len(update.arrivals) for update in workers.observer.updates]
    grown = [size for size, _ in itertools.groupby(sizes)]
    assert sizes[:3] == [2, 2, 2] and grown[:2] == [2, 3] and workers.observer.newcomers == [2]


def test_all_places_are_taken_unless_one_is_free() -> None:
    memory = ThreadMemory(Layout(SIZE, 2))
    with pytest.raises(SetupError, match="the run has not begun to train"):
        take_place(memory)
    memory.store(Word.READY, 1)
    with pytest.raises(SetupError, match=r"all 2 places of workers are taken \(strategy.max_workers\)"):
        take_place(memory)
    Vacancies(memory, WorkerWatch(memory, 60.0), lambda worker: True).offer(1)
    assert take_place(memory) == 1
    with pytest.raises(SetupError, match="all 2 places"):
        take_place(memory)
    memory.store(Word.SERVED, 1)
    with pytest.raises(SetupError, match="the run is at its end"):
        take_place(memory)


def test_a_place_is_offered_again_when_its_process_is_gone_and_nothing_of_it_is_pending() -> None:
    memory = ThreadMemory(Layout(SIZE, 1))
    memory.store(Word.READY, 1)
    pending = [True]
    vacancies = Vacancies(memory, WorkerWatch(memory, 60.0), lambda worker: not pending[0])
    heartbeat = memory.layout.worker_word(0, WorkerWord.HEARTBEAT)
    state = memory.layout.worker_word(0, WorkerWord.STATE)
    memory.store(memory.layout.worker_word(0, WorkerWord.HELD + 3), CLAIMING)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        memory.store(heartbeat + LifeWord.SCOPE, scope_of_ids())
        memory.store(heartbeat + LifeWord.PROCESS, process.pid)
        memory.store(state, WorkerState.LEFT)
        vacancies.note_gone(0)
        look(vacancies)
        assert memory.load(state) == WorkerState.LEFT  # it lives
        process.kill()
        process.wait()
    look(vacancies)
    assert memory.load(state) == WorkerState.LEFT  # a gradient of it is pending
    pending[0] = False
    look(vacancies)
    assert memory.load(state) == WorkerState.VACANT
    assert memory.load(memory.layout.worker_word(0, WorkerWord.HELD + 3)) == 0
    assert take_place(memory) == 0 and memory.load(state) == -os.getpid()
    memory.store(state, -process.pid)  # a process that took the place, and died
    look(vacancies)
    assert memory.load(state) == WorkerState.VACANT


def look(vacancies: Vacancies) -> None:
    vacancies._looked = 0.0
    vacancies.look()


class FakeGuests:
    """Guests of which a test decides whether they have ended."""

    def __init__(self) -> None:
        self.gone: set[int] = set()

    def ended(self) -> frozenset[int]:
        return frozenset(self.gone)

    def shut_out(self, place: int) -> None:
        self.gone.add(place)


def test_the_place_of_a_guest_is_free_when_its_connection_has_ended_wherever_its_process_was() -> None:
    """Its process may be of the store's host, and what it sent may still be read after its end."""
    memory, guests = ThreadMemory(Layout(SIZE, 1)), FakeGuests()
    memory.store(Word.READY, 1)
    watch = WorkerWatch(memory, 60.0, guests=guests)
    vacancies = Vacancies(memory, watch, lambda worker: True)
    state = memory.layout.worker_word(0, WorkerWord.STATE)
    vacancies.offer(0)
    assert take_place(memory, is_for_guest=True) == 0
    look(vacancies)
    assert memory.load(state) == WorkerState.JOINING_AFAR
    guests.gone.add(0)
    look(vacancies)
    assert memory.load(state) == WorkerState.VACANT  # it went before it was active
    guests.gone.discard(0)
    assert take_place(memory, is_for_guest=True) == 0
    heartbeat = memory.layout.worker_word(0, WorkerWord.HEARTBEAT)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        memory.store(heartbeat + LifeWord.SCOPE, scope_of_ids())
        memory.store(heartbeat + LifeWord.PROCESS, process.pid)
    memory.store(state, WorkerState.ACTIVE)
    assert vacancies.take_joined() == [0]
    watch.begin(0)
    vacancies.welcome(0)
    watch._looked = 0.0
    assert watch.find_dead([0]) == {}  # its process is gone, but not its connection
    guests.gone.add(0)
    watch._looked = 0.0
    assert watch.find_dead([0]) == {0: "worker 0 is dead: its connection from another host has ended"}
    vacancies.note_gone(0)
    look(vacancies)
    assert memory.load(state) == WorkerState.VACANT
    assert take_place(memory) == 0 and memory.load(memory.layout.worker_word(0, WorkerWord.IS_GUEST)) == 0
