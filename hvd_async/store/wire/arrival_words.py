"""An arrival as the control words that lie beside its gradient, and back."""

from __future__ import annotations

from collections.abc import Sequence

from hvd_async.store.parameter_store import Arrival
from hvd_async.store.wire.layout import ArrivalWord
from hvd_async.transport.block import float_to_word, word_to_float


def to_words(arrival: Arrival) -> list[int]:
    """What the worker knows of `arrival`, in the order of `ArrivalWord`."""
    words = dict.fromkeys(ArrivalWord, 0)
    words[ArrivalWord.WORKER] = arrival.worker
    words[ArrivalWord.BATCH] = arrival.batch
    words[ArrivalWord.TOKENS] = arrival.tokens
    words[ArrivalWord.BASE_VERSION] = arrival.base_version
    words[ArrivalWord.LOSS] = float_to_word(arrival.loss)
    words[ArrivalWord.SECONDS] = float_to_word(arrival.step_seconds)
    words[ArrivalWord.PROVISIONAL] = arrival.provisional
    words[ArrivalWord.PUSH_SECONDS] = float_to_word(arrival.push_seconds)
    words[ArrivalWord.WAIT_SECONDS] = float_to_word(arrival.wait_seconds)
    words[ArrivalWord.PULL_SECONDS] = float_to_word(arrival.pull_seconds)
    return [words[word] for word in ArrivalWord]


def from_words(words: Sequence[int], push: int, sent_bytes: int = 0) -> Arrival:
    """The inverse of `to_words`; `push` and `sent_bytes` are for whoever reads it to know."""
    return Arrival(
        worker=words[ArrivalWord.WORKER],
        batch=words[ArrivalWord.BATCH],
        base_version=words[ArrivalWord.BASE_VERSION],
        tokens=words[ArrivalWord.TOKENS],
        loss=word_to_float(words[ArrivalWord.LOSS]),
        step_seconds=word_to_float(words[ArrivalWord.SECONDS]),
        push_seconds=word_to_float(words[ArrivalWord.PUSH_SECONDS]),
        wait_seconds=word_to_float(words[ArrivalWord.WAIT_SECONDS]),
        pull_seconds=word_to_float(words[ArrivalWord.PULL_SECONDS]),
        provisional=words[ArrivalWord.PROVISIONAL],
        sent_bytes=sent_bytes,
        push=push,
    )
