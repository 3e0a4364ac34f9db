"""Measurements of MPI on this machine, in a few seconds between ranks 0 and 1, for `hvd-async doctor`.

Import this module after `init_mpi`. Rank 0 acts as the store, rank 1 as a worker.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from hvd_async.transport.probe_result import Bandwidth, OneSidedProgress, ProbeResult, WindowKind

_BUSY_SECONDS = 0.5
_HEAD_START_SECONDS = 0.05
_WORDS = 1 << 10
_BULK_BYTES = 32 << 20
# As in the transport: whole transfers are not faster.
_CHUNK_BYTES = 4 << 20
_REPEATS = 5


def library_name() -> str:
    """Return name and version of the MPI that mpi4py loaded. Local."""
    name = MPI.Get_library_version().partition(",")[0].partition("\n")[0]
    return " ".join(name.strip("\0 ").split())


def measure(comm: MPI.Comm) -> ProbeResult | None:
    """Measure between ranks 0 and 1; the others wait. Collective over `comm`.

    The result is on rank 1, whose clock it uses; None on all other ranks, and if /dev/shm is too small to try.
    """
    pair = cast(MPI.Intracomm, comm.Split(0 if comm.Get_rank() < 2 else MPI.UNDEFINED))
    if pair == MPI.COMM_NULL or pair.Get_size() < 2:
        return None
    host = pair.Split_type(MPI.COMM_TYPE_SHARED)
    same_host = host.Get_size() == 2
    # MPICH dies of SIGBUS at the first touch of a window for which /dev/shm has no room.
    room = np.array([shutil.disk_usage("/dev/shm").free > 2 * _BULK_BYTES], dtype=np.int64)
    pair.Allreduce(MPI.IN_PLACE, room, MPI.MIN)
    if not room[0]:
        return None
    kinds: tuple[WindowKind, ...] = ("shared", "created") if same_host else ("created",)
    progress = tuple(_measure_progress(pair, kind) for kind in kinds)
    bandwidth = _measure_bandwidth(pair, "shared" if same_host else "created")
    host.Free()
    rank = pair.Get_rank()
    pair.Free()
    return ProbeResult(same_host, progress, bandwidth) if rank == 1 else None


@contextlib.contextmanager
def _open_window(pair: MPI.Intracomm, kind: WindowKind, num_bytes: int) -> Iterator[tuple[MPI.Win, npt.NDArray[np.uint8]]]:
    """Yield a locked window on rank 0's memory, and that memory (none on rank 1 for a created window). Collective."""
    mine = num_bytes if pair.Get_rank() == 0 else 0
    if kind == "shared":
        window = MPI.Win.Allocate_shared(mine, 1, comm=pair)
        memory = np.frombuffer(cast(Any, window.Shared_query(0)[0]), dtype=np.uint8)
    else:
        memory = np.zeros(mine, dtype=np.uint8)
        window = MPI.Win.Create(memory, 1, comm=pair)
    window.Lock_all(MPI.MODE_NOCHECK)
    if pair.Get_rank() == 0:
        memory[:] = 0  # first touch
    pair.Barrier()
    try:
        yield window, memory
    finally:
        pair.Barrier()
        window.Unlock_all()
        window.Free()


def _measure_progress(pair: MPI.Intracomm, kind: WindowKind) -> OneSidedProgress:
    """Time a fetch-and-add, a Put and a Get on rank 0's memory while rank 0 computes. Collective; rank 1 has the seconds."""
    with _open_window(pair, kind, 8 * (_WORDS + 1)) as (window, _):
        if pair.Get_rank() == 0:
            pair.Barrier()
            _compute_without_mpi(_BUSY_SECONDS)
            return OneSidedProgress(kind, 0.0, _BUSY_SECONDS)
        _touch(window)  # connections are made on first use, while rank 0 waits in the barrier and so progresses MPI
        pair.Barrier()
        time.sleep(_HEAD_START_SECONDS)
        begin = time.perf_counter()
        _touch(window)
        return OneSidedProgress(kind, time.perf_counter() - begin, _BUSY_SECONDS - _HEAD_START_SECONDS)


def _touch(window: MPI.Win) -> None:
    one, before = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    data = np.ones(_WORDS, dtype=np.int64)
    window.Fetch_and_op(one, before, 0, 0, MPI.SUM)
    window.Flush(0)
    window.Put(data, 0, target=8)
    window.Flush(0)
    window.Get(data, 0, target=8)
    window.Flush(0)


def _compute_without_mpi(seconds: float) -> None:
    matrix = np.ones((64, 64), dtype=np.float32)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        matrix = matrix @ matrix
        matrix /= matrix.max()


def _measure_bandwidth(pair: MPI.Intracomm, kind: WindowKind) -> Bandwidth:
    """Measure push, pull and memcpy. Collective; rank 1 has the numbers. Rank 0 waits inside MPI, so that a network
    window makes progress."""
    with _open_window(pair, kind, _BULK_BYTES) as (window, memory):
        if pair.Get_rank() == 0:
            return Bandwidth(0.0, 0.0, 0.0)
        mine, other = np.ones(_BULK_BYTES, dtype=np.uint8), np.zeros(_BULK_BYTES, dtype=np.uint8)
        if kind == "shared":  # plain copies into and out of the mapped block, as the transport does
            push, pull, within = _rates(
                lambda: np.copyto(memory, mine), lambda: np.copyto(mine, memory), lambda: np.copyto(other, mine)
            )
            return Bandwidth(push, pull, max(push, pull, within))  # these are memcpy as well
        return Bandwidth(
            *_rates(
                lambda: _transfer(window, window.Put, mine),
                lambda: _transfer(window, window.Get, mine),
                lambda: np.copyto(other, mine),
            )
        )


def _transfer(window: MPI.Win, operation: Callable[..., None], data: npt.NDArray[np.uint8]) -> None:
    for start in range(0, data.size, _CHUNK_BYTES):
        operation(data[start : start + _CHUNK_BYTES], 0, target=start)
    window.Flush(0)


def _rates(*copies: Callable[[], None]) -> list[float]:
    """Return gigabytes per second of the fastest of a few bulk copies of each kind, which take turns."""
    seconds = [math.inf] * len(copies)
    for _ in range(_REPEATS):
        for kind, copy in enumerate(copies):
            begin = time.perf_counter()
            copy()
            seconds[kind] = min(seconds[kind], time.perf_counter() - begin)
    return [_BULK_BYTES / best / 1e9 for best in seconds]
