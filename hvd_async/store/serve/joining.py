"""How a process takes a free place among the workers of a run under way."""

from __future__ import annotations

import os

import numpy as np

from hvd_async.errors import SetupError
from hvd_async.store.wire.layout import StoreWindow, Word, WorkerState, WorkerWord
from hvd_async.system.shared_memory import Place, map_place


def read_num_lost(place: Place) -> int:
    """Return how many workers of the launcher have died in the run whose store's first block is at `place`. Raises
    `SetupError` if the block cannot be opened."""
    words = np.frombuffer(map_place(place), dtype=np.int64)
    return int(words[Word.NUM_LOST])


def take_place(window: StoreWindow, is_for_guest: bool = False) -> int:
    """Take a free place, and return the number of the worker. `window` reaches shard 0 on this host; the client's `join` is
    the next step. `is_for_guest`: for a process of another host.

    Raises `SetupError` if the run has ended, or all places are taken.
    """
    if window.load(Word.READY) == 0:
        raise SetupError("the run has not begun to train; try again when its first lines are printed")
    if window.load(Word.SERVED) or window.load(Word.STOP) or window.load(Word.FAILED):
        raise SetupError("the run is at its end, and takes no workers any more")
    layout = window.layout
    for worker in range(layout.num_workers):
        word = layout.worker_word(worker, WorkerWord.STATE)
        if window.load(word) != WorkerState.VACANT:
            continue
        taken = WorkerState.JOINING_AFAR if is_for_guest else -os.getpid()
        if window.compare_swap(word, WorkerState.VACANT, taken) == WorkerState.VACANT:
            window.store(layout.worker_word(worker, WorkerWord.IS_GUEST), int(is_for_guest))
            return worker
    raise SetupError(
        f"all {layout.num_workers} places of workers are taken (strategy.max_workers); a place becomes free when a worker dies or"
        " leaves"
    )
