"""The control words in which a worker reports an evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from hvd_async.store.wire.layout import MAX_STATISTICS, StoreWindow, WorkerWord
from hvd_async.transport.block import float_to_word, word_to_float


def write_evaluation(window: StoreWindow, worker: int, version: int, statistics: Sequence[float]) -> None:
    """Begin to write the `statistics` of `version` from `worker`; EVALUATED may rise after a flush.

    Raises `ValueError` for more than `MAX_STATISTICS` numbers.
    """
    if len(statistics) > MAX_STATISTICS:
        raise ValueError(f"statistics: got {len(statistics)} numbers, expected at most {MAX_STATISTICS}")
    window.store(window.layout.worker_word(worker, WorkerWord.EVALUATED_VERSION), version)
    first = window.layout.worker_word(worker, WorkerWord.STATISTICS)
    window.store_words(first, [float_to_word(value) for value in statistics])


def read_evaluation(window: StoreWindow, worker: int) -> tuple[int, list[float]]:
    """Return the version that `worker` evaluated, and `MAX_STATISTICS` numbers, of which those not written are 0."""
    layout = window.layout
    version = window.load(layout.worker_word(worker, WorkerWord.EVALUATED_VERSION))
    words = window.load_words(layout.worker_word(worker, WorkerWord.STATISTICS), MAX_STATISTICS)
    return version, [word_to_float(word) for word in words]
