"""Reading of batches: in this process, or ahead of time by worker processes.

A batch is a function of the run's seed and its own number alone, whoever reads it: random augmentation draws from generators
that are seeded for the batch. Worker processes come from a fork server: a fork of a process in which MPI runs may crash.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing  # lets processes pass tensors in shared memory
from torch import Tensor
from torch.utils.data._utils import worker as _torch_worker

from hvd_async.errors import DataError
from hvd_async.system.printable import printable
from hvd_async.system.random_numbers import numbers_apart, seed_of_batch
from hvd_async.system.signals import STOP_SIGNALS, held_back

Batch = Any
WorkerInit = Callable[[int], None]
WHOLE = -1
"""In place of the number of a part: the whole batch."""
_READING = 1
"""Added to a run's seed for what reading draws, so that the dropout of a batch draws other numbers."""
_END_SECONDS = 2.0


@dataclass(frozen=True)
class Reading:
    """How a batch is read: `dataset[i]` for its examples, or `dataset.__getitems__` for all of them, and `collate`;
    unless `is_batched`, a batch is one element of the dataset. Sent to worker processes as it is."""

    dataset: Any
    collate: Callable[[Any], Batch]
    is_batched: bool
    seed: int

    def read(self, number: int, chosen: Any, part: int = WHOLE) -> Batch:
        """Return batch `number`, of the examples `chosen`, or `part` (0, 1, ...) of it, which draws numbers of its own."""
        seed = seed_of_batch(self.seed + _READING, number)
        with numbers_apart(seed if part == WHOLE else seed_of_batch(seed, part)):
            if not self.is_batched:
                return self.collate(self.dataset[chosen])
            several = getattr(self.dataset, "__getitems__", None)
            return self.collate(several(list(chosen)) if several else [self.dataset[example] for example in chosen])


class BatchReader:
    """Reads batches by their numbers, with `num_workers` processes that begin with those that are expected.

    Attributes:
        num_ahead: batches to expect at a time so that no process is idle; 0 without processes.
        obstacle: why there are no processes although some were asked for; empty otherwise.
    """

    def __init__(
        self,
        reading: Reading,
        num_workers: int = 0,
        worker_init: WorkerInit | None = None,
        *,
        each_ahead: int = 2,
        timeout: float | None = None,
    ) -> None:
        """Start nothing yet: processes begin with the first call of `expect`. Each reads up to `each_ahead` batches ahead of
        time; to wait longer than `timeout` seconds for a batch is an error."""
        self._reading = reading
        self._num_workers = num_workers
        self._worker_init = worker_init
        self._timeout = timeout
        self.obstacle = obstacle_to((reading, worker_init)) if num_workers else ""
        self.num_ahead = 0 if self.obstacle else each_ahead * num_workers
        self._pool: ProcessPoolExecutor | None = None
        self._numbers: Any = None
        self._under_way: dict[tuple[int, int], Future[Batch]] = {}

    def expect(self, wanted: Iterable[tuple[int, Any, int]]) -> None:
        """Let the processes begin to read the batches or parts of batches `wanted`, each with the arguments of `read`. Does not
        wait."""
        if not self.num_ahead:
            return
        for number, chosen, part in wanted:
            if (number, part) not in self._under_way:
                with contextlib.suppress(BrokenProcessPool):  # told when a batch is read that was under way, else read here
                    self._under_way[number, part] = self._started().submit(_read, number, chosen, part)

    def read(self, number: int, chosen: Any, part: int = WHOLE) -> Batch:
        """Return batch `number`, of the examples `chosen`, or `part` (0, 1, ...) of it, of these. Raises `DataError` if a
        process died, and what the dataset raises."""
        future = self._under_way.pop((number, part), None)
        if future is None:
            return self._reading.read(number, chosen, part)
        try:
            return future.result(self._timeout)
        except concurrent.futures.TimeoutError:
            raise DataError(f"batch {number}: not read within {self._timeout:g} seconds, the loader's timeout") from None
        except BrokenProcessPool:
            raise DataError(
                f"batch {number}: a process that reads batches ended by itself, perhaps out of memory; try fewer of them"
                " (num_workers)"
            ) from None

    def close(self) -> None:
        """End the processes, each after the batch that it reads, and forget what they read. Waits for them a little."""
        self._under_way.clear()
        if self._pool is None:
            return
        # Not by `wait=False`: a process that ends soon afterwards would leave semaphores behind.
        closing = threading.Thread(target=self._pool.shutdown, kwargs={"cancel_futures": True}, daemon=True)
        self._pool = self._numbers = None
        with contextlib.suppress(RuntimeError):  # at the end of a script no thread can be started
            closing.start()
            closing.join(_END_SECONDS)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            start_fork_server()
            context = torch.multiprocessing.get_context("forkserver")
            self._numbers = context.Value("i", 0)  # kept: a process that still starts opens it by its name
            arguments = (self._reading, self._worker_init, self._numbers, self._num_workers)
            self._pool = ProcessPoolExecutor(self._num_workers, context, _begin, arguments)
        return self._pool


def start_fork_server() -> None:
    """Start the process that starts others, unless it runs already, and the one that keeps account of what they share.

    Launchers pass signals on to all processes of a rank; these two and their children do not get them.
    """
    for helper in (resource_tracker, forkserver):
        with held_back():  # one block each: the start of the first lets some signals through again
            helper.ensure_running()


def map_tensors(batch: Batch, change: Callable[[Any], Any], method: str = "to") -> Batch:
    """Return `batch` with `change` of whatever has the method that it calls, such as tensors: in lists, tuples and maps of any
    type, which stay of their type as far as it can be made of its elements."""
    if hasattr(batch, method):
        return change(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):  # a named tuple
        return type(batch)(*(map_tensors(value, change, method) for value in batch))
    if isinstance(batch, Mapping):
        changed: Any = {key: map_tensors(value, change, method) for key, value in batch.items()}
        if type(batch) is dict:
            return changed
        if isinstance(batch, MutableMapping):  # which may have more than its elements, such as the default of a defaultdict
            copied = copy.copy(batch)
            copied.update(changed)
            return copied
    elif isinstance(batch, list | tuple):
        changed = [map_tensors(value, change, method) for value in batch]
    else:
        return batch
    try:
        return type(batch)(changed)
    except TypeError:
        return tuple(changed) if isinstance(batch, tuple) else changed


_own: Reading


def _begin(reading: Reading, worker_init: WorkerInit | None, numbers: Any, num_workers: int) -> None:
    """Begin a worker process."""
    global _own
    for number in STOP_SIGNALS:  # which launchers pass on to all processes; the rank decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="hvd-async-parent", daemon=True).start()
    torch.set_num_threads(1)
    _own = reading
    with numbers.get_lock():
        number = numbers.value
        numbers.value += 1
    _torch_worker._worker_info = _torch_worker.WorkerInfo(
        id=number, num_workers=num_workers, seed=seed_of_batch(reading.seed, number), dataset=reading.dataset
    )
    if worker_init is not None:
        worker_init(number)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _read(number: int, chosen: Any, part: int) -> Batch:
    return _own.read(number, chosen, part)


def obstacle_to(sent: Any) -> str:
    """Return why processes of a fork server cannot get `sent`, or empty text."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if path is not None and getattr(main, "__spec__", None) is None:
        with contextlib.suppress(OSError):
            if "__name__" not in Path(path).read_text(encoding="utf-8", errors="replace"):
                return 'the script has no `if __name__ == "__main__":`, so that a new process would train as well'
    try:
        _Trial(io.BytesIO()).dump(sent)
    except Exception as error:  # whatever the classes of users raise
        return f"it cannot be sent to another process: {printable(' '.join(str(error).split()))}"
    return ""


class _Trial(pickle.Pickler):
    """Shows whether an object can be sent, without a copy of its data."""

    def persistent_id(self, obj: Any) -> str | None:
        """Leave out large data."""
        return "data" if isinstance(obj, Tensor | np.ndarray | bytes) else None
