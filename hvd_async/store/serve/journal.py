"""The store's journal: what it has decided, in its block, so that another process knows it when the store's process has died.

Records are written one after the other into a ring, and counted last; what is not counted counts for nothing. Each record also
says where the sum of the pending gradients is, and how many pushes are not in it yet. Once the observer has written down what the
records say, the ring needs only the last version and the pushes since.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.optimizers.protocol import StepOrder
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.wire import arrival_words
from hvd_async.store.wire.layout import ARRIVAL_WORDS, JOURNAL_HEAD_WORDS, RECORD_WORDS, StoreMemory, StoreWindow
from hvd_async.system.json_text import plain_number
from hvd_async.transport.block import float_to_word, word_to_float

_REFUSALS = list(Refusal)
_RECORDS_PER_ARRIVAL = 2
_SPARE_RECORDS = 16


class _Head(enum.IntEnum):
    """Words of the head."""

    END = 0  # number of records written; set last
    FIRST = 1  # number of the first record that is needed
    STARTED = 2  # bits of the time, as of `time.monotonic`, when the process began to serve


class _Kind(enum.IntEnum):
    """The kinds of records, each of which also says where the pending sum is."""

    BASE = 1  # the version; nothing is pending but the pushes that follow
    PUSH = 2  # an arrival was taken in or refused
    READ = 3  # the pending gradients were read
    STEP = 4  # the next version is about to be made
    UPDATE = 5  # it is made
    DISCARD = 6  # the pending arrivals were refused


class _Word(enum.IntEnum):
    """Words of a record."""

    KIND = 0
    SUM_PLACE = 1  # 1 + `ParameterStore.sum_place`, or 0
    NUM_UNREAD = 2  # pushes whose gradients are in their slots
    TIME = 3  # bits of the time, as of `time.monotonic`; for PUSH, when the arrival was received
    BODY = 4


@dataclass(frozen=True)
class Received:
    """An arrival that was decided on, and when it was received, as of `time.monotonic`; None: by an earlier process. `slot`: into
    which it was pushed; `refusal`: why it is refused, if it is."""

    arrival: Arrival
    time: float | None
    slot: int
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Made:
    """An update that was made, with its arrivals, and when."""

    update: Update
    arrivals: tuple[Received, ...]
    time: float


@dataclass
class JournalState:
    """The state of a store, as its journal has it.

    `events`: what was decided, in order: refused arrivals and updates, which the observer may have written down or not. `pushes`:
    the pending arrivals, by push, in order; the last `num_unread` are not in the sum. `order`: a step that may have been begun.
    `started` and `ended`: when the process began to serve, and wrote the last record, as of `time.monotonic`.
    """

    started: float
    ended: float = 0.0
    version: int = 0
    weight: float = 0
    clip: float = 1.0
    sum_place: int | None = None
    num_unread: int = 0
    pushes: list[list[Received]] = field(default_factory=list)
    order: StepOrder | None = None
    events: list[Received | Made] = field(default_factory=list)

    @property
    def pending(self) -> list[Received]:
        """The pending arrivals, in the order of their summation."""
        return [each for push in self.pushes for each in push]

    def complete(self, version: int, rate: float, norm: float, weight: float, when: float) -> None:
        """Note that `version` is made, of all pending arrivals, up to which batches of `weight` were seen."""
        arrivals = tuple(self.pending)
        update = Update(version, tuple(each.arrival for each in arrivals), rate, norm)
        self.events.append(Made(update, arrivals, when))
        self.version, self.weight, self.pushes = version, weight, []
        self.sum_place, self.num_unread, self.order = None, 0, None


def num_records(num_arrivals: int, num_slots: int, arrivals_per_slot: int) -> int:
    """Return the number of records for which a journal needs room if updates have up to `num_arrivals`."""
    # Beside those of an update, under a bound that waits, and those that one look at all slots finds; twice, to begin anew.
    return 2 * (_RECORDS_PER_ARRIVAL * (num_arrivals + 2 * num_slots * arrivals_per_slot) + _SPARE_RECORDS)


class Journal:
    """Writes the journal of one store; does nothing where the block has no room for one. Used by the store's thread."""

    def __init__(self, store: ParameterStore, memory: StoreMemory) -> None:
        """`store` and `memory`, the block of shard 0, stay the caller's."""
        self._store = store
        self._memory = memory
        self._layout = memory.layout
        self._is_kept = self._layout.num_records > 0
        # Written for every arrival: words whose place takes time to find.
        self._end_word = self._layout.journal_word(_Head.END)
        self._first_word = self._layout.journal_word(_Head.FIRST)
        self._first_record = self._end_word + JOURNAL_HEAD_WORDS
        self._num = 0  # of records written
        self._first = 0  # the record from which a reader begins
        self._base = 0  # the last record after which nothing was pending
        self._times: dict[int, tuple[float, int]] = {}  # when each pending batch was received, and its slot
        if self._is_kept:
            store.about_to_step = self._about_to_step

    def begin(self) -> None:
        """Write down the state of the store, which is about to serve."""
        if self._is_kept:
            self._memory.store(self._layout.journal_word(_Head.STARTED), float_to_word(time.monotonic()))
            self._write_state()

    def pushed(self, arrivals: Sequence[Arrival], slot: int, refused: Mapping[int, Refusal], since: float) -> None:
        """Write down the push with `arrivals` in `slot`, received at `since`. `refused`: the reason, by batch."""
        if not self._is_kept:
            return
        words = arrival_words.read_words(self._memory, slot, len(arrivals))
        records = []
        for arrival, own in zip(arrivals, words, strict=True):
            refusal = refused.get(arrival.batch)
            records.append(self._push(arrival, own, slot, since, refusal))
            if refusal is None:
                self._times[arrival.batch] = since, slot
        self._write(records)

    def read(self) -> None:
        """Write down that the pending gradients were read."""
        if self._is_kept:
            self._write([self._record(_Kind.READ)])

    def updated(self, update: Update) -> None:
        """Write down `update`, which is made: from now on it counts."""
        if self._is_kept:
            numbers = (self._store.weight, self._store.clip, update.gradient_norm, update.learning_rate)
            self._nothing_pending()
            self._write([self._record(_Kind.UPDATE, [update.version, *map(float_to_word, numbers)])])

    def discarded(self, refusal: Refusal) -> None:
        """Write down that the pending arrivals were refused."""
        if self._is_kept:
            self._nothing_pending()
            self._base += 1
            self._write([self._record(_Kind.DISCARD, [_REFUSALS.index(refusal)]), self._base_record()])

    def settle(self) -> None:
        """Forget what the observer has written down, which is everything up to now."""
        if not self._is_kept:
            return
        if self._first != self._base:
            self._set_first(self._base)
        if self._num - self._first > self._layout.num_records // 2:  # many were refused
            self._write_state()

    def _about_to_step(self, order: StepOrder) -> None:
        numbers = (order.rate_factor, order.divisor, order.clip)
        self._write([self._record(_Kind.STEP, [order.version, *map(float_to_word, numbers)])])

    def _write_state(self) -> None:
        """Write everything anew, after what was written before."""
        self._base = self._num
        records = [self._base_record()]
        for arrival in self._store.pending:
            since, slot = self._times.get(arrival.batch, (0.0, -1))
            records.append(self._push(arrival, arrival_words.to_words(arrival), slot, since, None))
        if len(records) > self._layout.num_records // 2:  # pending of a job that had more workers
            self._give_up()
            return
        self._write(records)
        self._set_first(self._base)

    def _base_record(self) -> list[int]:
        return self._record(_Kind.BASE, [self._store.version, *map(float_to_word, (self._store.weight, self._store.clip))])

    def _give_up(self) -> None:
        """Keep no journal any more: what is in it would be wrong."""
        self._is_kept = False
        self._store.about_to_step = lambda order: None
        self._memory.store(self._end_word, 0)

    def _nothing_pending(self) -> None:
        """Note that the next record is one after which nothing is pending."""
        self._base = self._num
        self._times.clear()

    def _set_first(self, number: int) -> None:
        self._first = number
        self._memory.store(self._first_word, number)

    def _push(self, arrival: Arrival, words: Sequence[int], slot: int, since: float, refusal: Refusal | None) -> list[int]:
        """Return the record of `arrival`, which `words` describe."""
        refused = 0 if refusal is None else 1 + _REFUSALS.index(refusal)
        return self._record(_Kind.PUSH, [slot, refused, arrival.sent_bytes, arrival.push, *words], since)

    def _record(self, kind: _Kind, body: Sequence[int] = (), when: float | None = None) -> list[int]:
        place = self._store.sum_place
        when = time.monotonic() if when is None else when
        return [kind, 0 if place is None else 1 + place, len(self._store.unread_slots), float_to_word(when), *body]

    def _write(self, records: Sequence[Sequence[int]]) -> None:
        if self._num + len(records) - self._first > self._layout.num_records:
            self._give_up()
            return
        for record in records:
            place = self._first_record + self._num % self._layout.num_records * RECORD_WORDS
            self._memory.store_words(place, record)
            self._num += 1
        self._memory.store(self._end_word, self._num)


def read_journal(window: StoreWindow) -> JournalState | None:
    """Return the state that the journal in `window`, the block of shard 0, has; None if the store has not begun to serve, or
    keeps none."""
    layout = window.layout
    if not layout.num_records:
        return None
    end, first, started = (window.load(layout.journal_word(word)) for word in _Head)
    if end == 0:  # not yet, or given up
        return None
    state = JournalState(word_to_float(started))
    first_record = layout.journal_word(JOURNAL_HEAD_WORDS)
    for number in range(first, end):
        place = first_record + number % layout.num_records * RECORD_WORDS
        _apply(state, window.load_words(place, RECORD_WORDS))
    return state


def _apply(state: JournalState, record: Sequence[int]) -> None:
    """Apply one record to `state`."""
    kind, when, body = _Kind(record[_Word.KIND]), word_to_float(record[_Word.TIME]), record[_Word.BODY :]
    state.ended = max(state.ended, when)
    state.order = None
    if kind is _Kind.BASE:
        state.version, state.weight, state.clip = body[0], plain_number(word_to_float(body[1])), word_to_float(body[2])
        state.pushes = []
    elif kind is _Kind.PUSH:
        _take_in(state, body, when)
    elif kind is _Kind.STEP:
        factor, divisor, clip = map(word_to_float, body[1:4])
        state.order = StepOrder(body[0], factor, divisor, clip)
    elif kind is _Kind.UPDATE:
        weight, state.clip, norm, rate = map(word_to_float, body[1:5])
        state.complete(body[0], rate, norm, plain_number(weight), when)
    elif kind is _Kind.DISCARD:
        state.events += [Received(each.arrival, each.time, each.slot, _REFUSALS[body[0]]) for each in state.pending]
        state.pushes = []
    state.sum_place = record[_Word.SUM_PLACE] - 1 if record[_Word.SUM_PLACE] else None
    state.num_unread = record[_Word.NUM_UNREAD]


def _take_in(state: JournalState, body: Sequence[int], when: float) -> None:
    slot, refused, sent_bytes, push = body[:4]
    arrival = arrival_words.from_words(body[4 : 4 + ARRIVAL_WORDS], push, sent_bytes)
    if refused:
        state.events.append(Received(arrival, when, slot, _REFUSALS[refused - 1]))
        return
    received = Received(arrival, when if slot >= 0 else None, slot)
    if arrival.batch == push or not state.pushes:
        state.pushes.append([received])
    else:
        state.pushes[-1].append(received)
