"""The store's journal: what a reader finds in the block, whatever was written before."""

from __future__ import annotations

import random

import pytest
import torch

from hvd_async.config import OptimizerConfig
from hvd_async.store.arrival import Arrival, Refusal
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.serve.journal import Journal, JournalState, Made, num_records, read_journal
from hvd_async.store.wire import arrival_words
from hvd_async.store.wire.layout import Layout
from hvd_async.store.wire.slots import Sent
from hvd_async.transport.inprocess import ThreadMemory
from tests.store.stores import asynchronous, make_store

SIZE, WORKERS, NEEDED = 8, 3, 4
LATER = ((), ((3, 1),), tuple((version, version % 2) for version in range(7)))


class JournalWriter:
    """A store whose decisions are written into a journal, as the server does."""

    def __init__(self, capacity: int = num_records(NEEDED, WORKERS, 1)) -> None:
        self.memory = ThreadMemory(Layout(SIZE, WORKERS, num_records=capacity))
        self.store: ParameterStore = make_store(
            asynchronous(arrivals_per_update=NEEDED), num_workers=WORKERS, memory=self.memory, optimizer=OptimizerConfig()
        )
        self.journal = Journal(self.store, self.memory)
        self.journal.begin()
        self._batch = 0

    def push(self, value: float, settles: bool = True) -> None:
        worker = self._batch % WORKERS
        arrival = Arrival(
            worker, self._batch, self.store.version, weight=2, loss=1.0, push=self._batch, later_bases=LATER[self._batch % 3]
        )
        self._batch += 1
        arrival_words.write_push(self.memory, worker, [arrival], Sent(value, 4 * SIZE))
        gradient = Gradient.measure(torch.full((SIZE,), value))
        self.store.accept([arrival], gradient)
        refused = {each.batch: why for each, why in self.store.take_refused()}
        self.journal.pushed([arrival], worker, refused, 1.0)
        if self.store.is_complete():
            update = self.store.advance()
            if update is None:
                self.store.take_refused()
                self.journal.discarded(Refusal.SUM_NOT_FINITE)
            else:
                self.journal.updated(update)
        elif random.Random(self._batch).random() < 0.3:
            self.store.flush()
            self.journal.read()
        if settles:
            self.journal.settle()

    def read(self) -> JournalState:
        state = read_journal(self.memory)
        assert state is not None
        return state

    def check(self) -> None:
        state, store = self.read(), self.store
        assert (state.version, state.weight, state.clip) == (store.version, store.weight, store.clip)
        assert [(each.arrival.batch, each.arrival.bases) for each in state.pending] == [
            (arrival.batch, arrival.bases) for arrival in store.pending
        ]
        assert (state.sum_place, state.num_unread) == (store.sum_place, len(store.unread_slots))


@pytest.mark.parametrize("seed", range(5))
def test_a_reader_finds_the_state_of_the_store_after_every_push(seed: int) -> None:
    dice, written = random.Random(seed), JournalWriter()
    for _ in range(400):
        value = dice.choice([1.0, 1.0, 1.0, 0.5, float("nan"), 3e38])  # the last overflows in the sum, which is refused
        written.push(value)
        written.check()
    assert written.store.version > 10 and written.store.refused.total() > 50


def test_what_was_decided_since_it_was_settled_is_told() -> None:
    written = JournalWriter()
    for _ in range(NEEDED + 1):
        written.push(1.0, settles=False)
    written.push(float("nan"), settles=False)
    made, refused = written.read().events
    assert isinstance(made, Made) and [arrival.batch for arrival in made.update.arrivals] == list(range(NEEDED))
    assert not isinstance(refused, Made) and refused.refusal is Refusal.NOT_FINITE and refused.arrival.batch == NEEDED + 1
    written.journal.settle()
    assert written.read().events[1:] == [refused]  # what comes before the last version is forgotten
    assert written.read().version == 1


def test_a_step_that_was_begun_is_known_until_it_is_made() -> None:
    written = JournalWriter()
    orders = []
    about = written.store.about_to_step

    def note(order: object) -> None:
        about(order)  # type: ignore[arg-type]
        orders.append(written.read().order)

    written.store.about_to_step = note
    for _ in range(NEEDED):
        written.push(1.0)
    (order,) = orders
    assert order is not None and order.version == 1 and order.divisor == 2.0 * NEEDED and written.read().order is None


def test_a_journal_without_room_is_given_up_and_never_wrong() -> None:
    written = JournalWriter(capacity=6)
    for _ in range(3 * NEEDED):
        written.push(1.0)
        state = read_journal(written.memory)
        assert state is None or state.version == written.store.version
    assert read_journal(written.memory) is None and written.store.version == 3
