"""The layout of a block: its parts never overlap, whatever the numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from hvd_async.store.wire.layout import (
    ARRIVAL_WORDS,
    MAX_HELD,
    MAX_STATISTICS,
    NUM_ORDERS,
    NUM_PROVISIONAL,
    NUM_RETURNS,
    ORDER_WORDS,
    Layout,
    LifeWord,
    ShardWord,
    SlotDtype,
    SlotFormat,
    SlotWord,
    Word,
    WorkerWord,
)
from hvd_async.store.wire.stop import StopKind, StopNotice
from hvd_async.transport.block import WORD_BYTES, float_to_word, word_to_float

LINE_BYTES = 64


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    num_elements = draw(st.integers(1, 10**9))
    slot_format = None
    if draw(st.booleans()):
        slot_format = SlotFormat(draw(st.sampled_from(SlotDtype)), draw(st.integers(1, num_elements)), draw(st.booleans()))
    return Layout(
        num_elements,
        num_workers=draw(st.integers(1, 20)),
        num_buffers=draw(st.integers(1, 3)),
        num_slots=draw(st.none() | st.integers(1, 20)),
        arrivals_per_slot=draw(st.integers(1, 9)),
        slot_format=slot_format,
        num_shards=draw(st.integers(1, 9)),
        num_state_vectors=draw(st.integers(0, 4)),
        num_provisional=draw(st.sampled_from([0, NUM_PROVISIONAL])),
        num_partials=draw(st.integers(0, 10**6)),
    )


def named_words(layout: Layout) -> Iterator[int]:
    """Yield every word that has a name."""
    yield from Word
    lives = [Word.STORE_HEARTBEAT, *(layout.worker_word(n, WorkerWord.HEARTBEAT) for n in range(layout.num_workers))]
    if layout.num_shards > 1:
        lives += [layout.shard_word(shard, ShardWord.HEARTBEAT) for shard in range(layout.num_shards)]
    yield from (first + word for first in lives for word in LifeWord if word != LifeWord.HEARTBEAT)
    for word in (Word.PROVISIONAL_VERSION, Word.PROVISIONAL_ARRIVALS):
        yield from (word + place for place in range(1, NUM_PROVISIONAL))
    for worker in range(layout.num_workers):
        yield from (layout.worker_word(worker, word) for word in WorkerWord)
        yield from (layout.worker_word(worker, WorkerWord.STATISTICS + number) for number in range(1, MAX_STATISTICS))
        yield from (layout.worker_word(worker, WorkerWord.HELD + number) for number in range(1, MAX_HELD))
    yield from map(layout.given_word, range(NUM_RETURNS))
    for slot in range(layout.slots):
        yield from (layout.slot_word(slot, word) for word in SlotWord if word != SlotWord.ARRIVALS)
        for number in range(layout.arrivals_per_slot):
            yield from (layout.arrival_word(slot, number, word) for word in range(ARRIVAL_WORDS))
    if layout.num_shards > 1:
        for shard in range(layout.num_shards):
            yield from (layout.shard_word(shard, word) for word in ShardWord)
        yield from (layout.order_word(n) + word for n in range(NUM_ORDERS) for word in range(ORDER_WORDS))


def regions(layout: Layout) -> Iterator[tuple[int, int]]:
    """Yield where each part of the block begins and ends, in bytes."""
    yield 0, WORD_BYTES * layout.num_words
    yield layout.partials_offset, layout.partials_offset + WORD_BYTES * layout.num_partials
    for version in range(layout.num_buffers):
        yield layout.published_offset(version), layout.published_offset(version) + 4 * layout.num_elements
    for number in range(layout.num_provisional):
        yield layout.provisional_offset(number), layout.provisional_offset(number) + 4 * layout.num_elements
    for slot in range(layout.slots):
        yield layout.slot_offset(slot), layout.slot_offset(slot) + layout.format.num_bytes
    for number in range(layout.num_state_vectors):
        yield layout.state_offset(number), layout.state_offset(number) + 4 * layout.num_elements


@given(layouts())
def test_no_word_has_two_names(layout: Layout) -> None:
    words = list(named_words(layout))
    assert len(set(words)) == len(words)
    assert 0 <= min(words) and max(words) < layout.num_words


@given(layouts())
def test_regions_begin_at_cache_lines_and_do_not_overlap(layout: Layout) -> None:
    found = sorted(regions(layout))
    assert all(begin % LINE_BYTES == 0 for begin, _ in found)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(found))
    assert found[-1][1] <= layout.total_bytes


def test_vectors_that_are_read_together_begin_at_different_offsets_in_a_page() -> None:
    layout = Layout(100_000, num_workers=4, num_state_vectors=3)
    vectors = [offset(n) for offset, count in ((layout.published_offset, 3), (layout.slot_offset, 4)) for n in range(count)]
    assert len({offset % 4096 for offset in vectors}) == 7


@given(layouts())
def test_words_of_different_writers_share_no_cache_line(layout: Layout) -> None:
    def line(word: int) -> int:
        return WORD_BYTES * word // LINE_BYTES

    by_workers = {line(Word.CLAIMS), line(Word.EVALUATIONS)}
    bells = {line(Word.STORE_BELL)}
    # Those that any rank writes once, or for a batch that was returned, do not count.
    rare = {Word.STOP, Word.FAILED, Word.TAKEN_AGAIN}
    others = {line(word) for word in {*Word} - rare - {Word.CLAIMS, Word.EVALUATIONS, Word.STORE_BELL}}
    writers = [others, by_workers, bells]
    for worker in range(layout.num_workers):
        writers.append({line(layout.worker_word(worker, word)) for word in (*WorkerWord, WorkerWord.HELD + MAX_HELD - 1)})
        taken = line(layout.worker_word(worker, WorkerWord.EVALUATION_TAKEN))
        writers[-1].remove(taken)
        writers.append({taken})
    for slot in range(layout.slots):
        by_store = (SlotWord.DRAINED, SlotWord.FREED, SlotWord.RELEASED, SlotWord.BELL)
        writers.append({line(layout.slot_word(slot, word)) for word in by_store})
        arrivals = [layout.arrival_word(slot, number, 5) for number in range(layout.arrivals_per_slot)]
        by_owner = [layout.slot_word(slot, word) for word in SlotWord if word not in by_store]
        writers.append({line(word) for word in [*by_owner, *arrivals]})
    if layout.num_shards > 1:
        writers += [{line(layout.shard_word(shard, word)) for word in ShardWord} for shard in range(layout.num_shards)]
    assert sum(map(len, writers)) == len(set().union(*writers))


@given(st.sampled_from(SlotDtype), st.integers(1, 10**9))
def test_count_indices_and_values_of_a_slot_do_not_overlap(dtype: SlotDtype, capacity: int) -> None:
    few = SlotFormat(dtype, capacity, is_sparse=True)
    assert WORD_BYTES <= few.indices_offset
    assert few.indices_offset + 4 * capacity <= few.values_offset
    assert few.values_offset + dtype.num_bytes * capacity == few.num_bytes
    assert few.indices_offset % 64 == few.values_offset % 64 == 0
    whole = SlotFormat(dtype, capacity)
    assert (whole.values_offset, whole.num_bytes) == (0, dtype.num_bytes * capacity)


def test_the_words_that_describe_a_push_are_adjacent() -> None:
    """The description is written in one operation."""
    layout = Layout(10, 2, arrivals_per_slot=3)
    words = [layout.slot_word(1, SlotWord.PUSHED_BASE_VERSION + n) for n in range(4)]
    words += [layout.arrival_word(1, number, word) for number in range(3) for word in range(ARRIVAL_WORDS)]
    assert words == list(range(words[0], words[0] + 4 + 3 * ARRIVAL_WORDS))
    assert (SlotWord.LARGEST, SlotWord.NUM_ARRIVALS, SlotWord.SENT_BYTES) == tuple(
        SlotWord.PUSHED_BASE_VERSION + n for n in (1, 2, 3)
    )
    assert layout.slot_word(0, SlotWord.FREED) == layout.slot_word(0, SlotWord.DRAINED) + 1


def test_orders_wrap_around() -> None:
    layout = Layout(10, 1, num_shards=2)
    assert layout.order_word(NUM_ORDERS + 3) == layout.order_word(3)
    assert len({layout.order_word(number) for number in range(NUM_ORDERS)}) == NUM_ORDERS


@given(st.floats(allow_nan=False))
def test_a_double_survives_the_way_through_a_word(value: float) -> None:
    assert word_to_float(float_to_word(value)) == value
    assert -(2**63) <= float_to_word(value) < 2**63


@given(st.sampled_from(StopKind), st.integers(0, 2**32 - 1), st.integers(0, 64))
def test_a_notice_survives_the_way_through_a_word(kind: StopKind, rank: int, signal_number: int) -> None:
    notice = StopNotice(kind, rank, signal_number)
    assert StopNotice.from_word(notice.to_word()) == notice and 0 < notice.to_word() < 2**63


def test_no_notice_is_the_word_0() -> None:
    assert StopNotice.from_word(0) is None
