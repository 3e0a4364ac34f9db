"""The block over MPI: shared memory for the ranks of the store's node, one-sided communication for the others.

Both live at once over the same memory (measured, and chosen for it): within a node a shared window runs at the speed of
memory and needs no help from the store; a second window, created over the same block, serves ranks on other nodes. Over
a network no MPI completes a passive operation while its target computes, so the store runs a progress thread while there
are remote workers. Where they exist, all fetch-and-adds go through the created window, because atomics of two windows
are not atomic with each other.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from mpi4py import MPI

from hvd_async.errors import PeerError, SetupError
from hvd_async.transport.bootstrap import MpiGroup
from hvd_async.transport.inprocess import MappedMemory
from hvd_async.transport.layout import WORD_BYTES, Layout

# Whole transfers are no faster, and counts stay far below 2^31.
_CHUNK_BYTES = 4 << 20
_STORE_RANK = 0
# The progress thread yields while there is traffic and for this long after it, then sleeps in small steps.
_EAGER_SECONDS = 0.05
_IDLE_SLEEP_SECONDS = 0.001


class SharedMemory(MappedMemory):
    """The block mapped into a rank of the store's node."""

    name = "shared memory"

    def __init__(self, layout: Layout, window: MPI.Win, atomics: MPI.Win, progress: ProgressThread | None) -> None:
        """`window` was made by `Allocate_shared`; `atomics` is the window that fetch-and-add uses."""
        super().__init__(layout, np.frombuffer(_mapped(window), dtype=np.uint8))
        self._window = window
        self._atomics = atomics
        self._progress = progress

    def fetch_add(self, word: int, amount: int) -> int:
        """See `Window.fetch_add`."""
        return _fetch_and_op(self._atomics, word, amount, MPI.SUM)

    def load(self, word: int) -> int:
        """See `Window.load`. On the store, raises `PeerError` once its progress thread has met a failed rank."""
        if self._progress is not None:
            self._progress.check()
        return super().load(word)

    def _fence(self) -> None:
        self._window.Sync()


class RemoteMemory:
    """The block of another node, reached by one-sided communication."""

    name = "RMA"

    def __init__(self, layout: Layout, window: MPI.Win, timeout_seconds: float) -> None:
        """`window` exposes the block on the store's rank in bytes and is locked for the life of this object.

        An operation that takes longer than `timeout_seconds` ends this process: MPI would wait for a dead store for ever.
        """
        self.layout = layout
        self._window = window
        self._timeout_seconds = timeout_seconds
        self._since: float | None = None
        threading.Thread(target=self._watch, name="hvd-async-watchdog", daemon=True).start()

    def load(self, word: int) -> int:
        """See `Window.load`."""
        return self._atomically(word, 0, MPI.NO_OP)

    def store(self, word: int, value: int) -> None:
        """See `Window.store`."""
        # An atomic replaces the value only after the puts flushed before it; a plain Put of 8 bytes does not promise that.
        self._atomically(word, value, MPI.REPLACE)

    def fetch_add(self, word: int, amount: int) -> int:
        """See `Window.fetch_add`."""
        return self._atomically(word, amount, MPI.SUM)

    def put(self, offset: int, source: torch.Tensor) -> None:
        """See `Window.put`."""
        with self._watched():
            for start, chunk in _chunks(source):
                self._window.Put(chunk, _STORE_RANK, target=(offset + start, chunk.size, MPI.BYTE))
            self._window.Flush(_STORE_RANK)

    def get(self, offset: int, target: torch.Tensor) -> None:
        """See `Window.get`."""
        with self._watched():
            for start, chunk in _chunks(target):
                self._window.Get(chunk, _STORE_RANK, target=(offset + start, chunk.size, MPI.BYTE))
            self._window.Flush(_STORE_RANK)

    def _atomically(self, word: int, value: int, op: MPI.Op) -> int:
        with self._watched():
            return _fetch_and_op(self._window, word, value, op)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        self._since = time.monotonic()
        yield
        self._since = None

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._timeout_seconds / 4))  # a watchdog looks now and then
            since = self._since
            if since is not None and time.monotonic() - since > self._timeout_seconds:
                sys.stderr.write(
                    f"hvd-async: the store did not answer for {self._timeout_seconds:.0f} s (strategy.store_timeout_seconds);"
                    " its rank is dead, stopped or starved of a core\n"
                )
                sys.stderr.flush()
                os._exit(PeerError.exit_status)  # the main thread is inside MPI and cannot be reached


class ProgressThread:
    """Lets MPI complete the one-sided operations of other nodes on this rank, whatever its other threads do."""

    def __init__(self, comm: MPI.Comm, words: npt.NDArray[np.int64]) -> None:
        """`comm`: a communicator of the real ranks that nobody else uses; `words`: control words, which show traffic."""
        self._comm = comm
        self._words = words
        self._stop = threading.Event()
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="hvd-async-progress", daemon=True)

    def __enter__(self) -> ProgressThread:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread and wait for it."""
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Raise `PeerError` if MPI told the thread that a rank failed."""
        if self._failure is not None:
            raise PeerError(f"MPI reports a failed rank: {self._failure}")

    def _run(self) -> None:
        seen, eager_until = -1, 0.0
        while not self._stop.is_set():
            try:
                self._comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG)
            except MPI.Exception as error:
                self._failure = " ".join(str(error).split())
                return
            traffic = int(self._words.sum())
            now = time.monotonic()
            if traffic != seen:
                seen, eager_until = traffic, now + _EAGER_SECONDS
            # sleep(0) gives the interpreter and the core away without losing the turn for long
            time.sleep(0 if now < eager_until else _IDLE_SLEEP_SECONDS)


@contextlib.contextmanager
def open_block(group: MpiGroup, layout: Layout, timeout_seconds: float = 60.0) -> Iterator[SharedMemory | RemoteMemory]:
    """The store's block, which lies on rank 0, as this rank reaches it.

    Collective over `group`, on entry and on an orderly exit; an exit by an exception frees nothing, since the other ranks
    may never come, and the job is then to be aborted. A rank on another node whose operation takes longer than
    `timeout_seconds` ends itself with a message. Raises `SetupError` on all ranks if the node lacks shared memory.
    """
    comm = group.comm
    node = cast(MPI.Intracomm, comm.Split_type(MPI.COMM_TYPE_SHARED, key=group.rank))
    is_near = _shares_node_with_store(comm, node)
    _check_shared_memory(group, layout)
    shared = created = None
    if is_near:
        shared = MPI.Win.Allocate_shared(layout.total_bytes if group.rank == _STORE_RANK else 0, 1, comm=node)
        shared.Lock_all(MPI.MODE_NOCHECK)
    has_remote = "far" in group.exchange("near" if is_near else "far")
    progress: ProgressThread | None = None
    with contextlib.ExitStack() as stack:
        if has_remote:
            exposed = _mapped(shared) if shared is not None and group.rank == _STORE_RANK else None
            created = MPI.Win.Create(exposed, 1, comm=comm)
            created.Lock_all(MPI.MODE_NOCHECK)
            probed = comm.Dup()
            if exposed is not None:
                words = np.frombuffer(exposed, dtype=np.int64, count=layout.num_words)
                progress = stack.enter_context(ProgressThread(probed, words))
        memory: SharedMemory | RemoteMemory
        if shared is not None:
            memory = SharedMemory(layout, shared, created if created is not None else shared, progress)
            if group.rank == _STORE_RANK:
                _touch(memory)
        else:
            assert created is not None  # a rank without shared memory is what makes has_remote true
            memory = RemoteMemory(layout, created, timeout_seconds)
        group.exchange("")  # nobody reads before the store has touched the block
        yield memory
        group.exchange("")  # the progress thread serves until every rank is done
    for window in (created, shared):
        if window is not None:
            window.Unlock_all()
            window.Free()


def _mapped(window: MPI.Win) -> memoryview:
    """The store's block, mapped into this process by a shared window. The window must outlive the view."""
    block: Any = window.Shared_query(_STORE_RANK)[0]  # a buffer, which mpi4py's stubs do not say
    return memoryview(block)


def _shares_node_with_store(comm: MPI.Intracomm, node: MPI.Intracomm) -> bool:
    ranks = np.zeros(node.Get_size(), dtype=np.int64)
    node.Allgather(np.array([comm.Get_rank()], dtype=np.int64), ranks)
    return _STORE_RANK in ranks


def _check_shared_memory(group: MpiGroup, layout: Layout, folder: str = "/dev/shm") -> None:
    """Too small a /dev/shm ends in SIGBUS with some MPIs, at the first touch: say the numbers before."""
    fault = ""
    if group.rank == _STORE_RANK and os.path.isdir(folder):
        status = os.statvfs(folder)
        free = status.f_bavail * status.f_frsize
        if free < layout.total_bytes:
            fault = (
                f"{folder}: {free} bytes free, expected {layout.total_bytes} for {layout.num_buffers} published copies and"
                f" {layout.num_workers} slots of {layout.vector_bytes} bytes; enlarge it, use fewer workers per store or"
                " strategy.published_buffers: 2"
            )
    fault = group.exchange(fault)[_STORE_RANK]
    if fault:
        raise SetupError(fault)


def _touch(memory: SharedMemory) -> None:
    """Give every page its memory now; the first touch of a window is ten times slower than a copy."""
    layout = memory.layout
    offsets = [layout.published_offset(i) for i in range(layout.num_buffers)]
    for offset in offsets + [layout.slot_offset(worker) for worker in range(layout.num_workers)]:
        memory.vector(offset).zero_()


def _fetch_and_op(window: MPI.Win, word: int, value: int, op: MPI.Op) -> int:
    before = np.zeros(1, dtype=np.int64)
    window.Fetch_and_op(np.array([value], dtype=np.int64), before, _STORE_RANK, WORD_BYTES * word, op)
    window.Flush(_STORE_RANK)
    return int(before[0])


def _chunks(vector: torch.Tensor) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    whole = vector.numpy().view(np.uint8)
    for start in range(0, whole.size, _CHUNK_BYTES):
        yield start, whole[start : start + _CHUNK_BYTES]
