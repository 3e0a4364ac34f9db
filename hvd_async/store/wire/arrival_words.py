"""The control words beside a gradient, which describe its arrivals."""

from __future__ import annotations

from collections.abc import Sequence

from hvd_async.store.arrival import Arrival
from hvd_async.store.wire.layout import ARRIVAL_WORDS, IDLE, ArrivalWord, SlotWord, StoreWindow
from hvd_async.store.wire.slots import Sent
from hvd_async.system.json_text import plain_number
from hvd_async.system.limits import MOST_MICRO_BATCHES
from hvd_async.transport.block import float_to_word, word_to_float


def to_words(arrival: Arrival) -> list[int]:
    """Return the words that the worker knows of `arrival`, by `ArrivalWord`: `ARRIVAL_WORDS` of them."""
    words = [0] * ArrivalWord.LATER_BASES + [IDLE, 0] * (MOST_MICRO_BATCHES - 1)
    words[ArrivalWord.WORKER] = arrival.worker
    words[ArrivalWord.BATCH] = arrival.batch
    words[ArrivalWord.WEIGHT] = float_to_word(arrival.weight)
    words[ArrivalWord.BASE_VERSION] = arrival.base_version
    words[ArrivalWord.LOSS] = float_to_word(arrival.loss)
    words[ArrivalWord.SECONDS] = float_to_word(arrival.step_seconds)
    words[ArrivalWord.PROVISIONAL] = arrival.provisional
    words[ArrivalWord.PUSH_SECONDS] = float_to_word(arrival.push_seconds)
    words[ArrivalWord.WAIT_SECONDS] = float_to_word(arrival.wait_seconds)
    words[ArrivalWord.PULL_SECONDS] = float_to_word(arrival.pull_seconds)
    for number, base in enumerate(arrival.later_bases):
        first = ArrivalWord.LATER_BASES + 2 * number
        words[first : first + 2] = base
    assert len(words) == ARRIVAL_WORDS, "more micro-batches than an arrival has room for"
    return words


def from_words(words: Sequence[int], push: int, sent_bytes: int = 0) -> Arrival:
    """Return the arrival that `to_words` encoded as `words`; the reader supplies `push` and `sent_bytes`."""
    later = words[ArrivalWord.LATER_BASES : ARRIVAL_WORDS]
    return Arrival(
        worker=words[ArrivalWord.WORKER],
        batch=words[ArrivalWord.BATCH],
        base_version=words[ArrivalWord.BASE_VERSION],
        weight=plain_number(word_to_float(words[ArrivalWord.WEIGHT])),
        loss=word_to_float(words[ArrivalWord.LOSS]),
        step_seconds=word_to_float(words[ArrivalWord.SECONDS]),
        push_seconds=word_to_float(words[ArrivalWord.PUSH_SECONDS]),
        wait_seconds=word_to_float(words[ArrivalWord.WAIT_SECONDS]),
        pull_seconds=word_to_float(words[ArrivalWord.PULL_SECONDS]),
        provisional=words[ArrivalWord.PROVISIONAL],
        sent_bytes=sent_bytes,
        push=push,
        later_bases=tuple(base for base in zip(later[::2], later[1::2], strict=True) if base[0] != IDLE),
    )


def write_push(window: StoreWindow, slot: int, arrivals: Sequence[Arrival], sent: Sent) -> None:
    """Begin to describe the gradient in `slot`, the sum of those of `arrivals`; PUSHED may rise after a flush."""
    words = [min(arrival.base_version for arrival in arrivals), float_to_word(sent.largest), len(arrivals), sent.num_bytes]
    for arrival in arrivals:
        words += to_words(arrival)
    window.store_words(window.layout.slot_word(slot, SlotWord.PUSHED_BASE_VERSION), words)


def read_largest(window: StoreWindow, slot: int) -> float:
    """Return the largest magnitude of the push in `slot`."""
    return word_to_float(window.load(window.layout.slot_word(slot, SlotWord.LARGEST)))


def read_words(window: StoreWindow, slot: int, count: int) -> list[list[int]]:
    """Return the words of the first `count` arrivals of the push in `slot`, as `to_words` made them."""
    width = ARRIVAL_WORDS
    words = window.load_words(window.layout.arrival_word(slot, 0, 0), width * count)
    return [words[width * number : width * (number + 1)] for number in range(count)]


def read_arrivals(window: StoreWindow, slot: int) -> list[Arrival]:
    """Return the arrivals of the push in `slot`, in the order of their summation."""
    layout = window.layout
    num_arrivals = window.load(layout.slot_word(slot, SlotWord.NUM_ARRIVALS))
    sent_bytes = window.load(layout.slot_word(slot, SlotWord.SENT_BYTES))
    each = read_words(window, slot, num_arrivals)
    push = each[0][ArrivalWord.BATCH]
    return [from_words(one, push, 0 if number else sent_bytes) for number, one in enumerate(each)]
