"""The task of the campaign's runs: small, and able to strike its own process at a point of the protocol.

Its only option is the folder of the case. There lies `strike.json`, if a rank is to strike itself, and there the ranks note
what the driver waits for: `started`, when training began, and its time; `measuring`; `struck`, the time of the strike, which
happens only once; and `version`, that of the last update.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import json
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from hvd_async.cluster.environment import read_environment
from hvd_async.config import RunConfig
from hvd_async.runs.events import Events
from hvd_async.runs.recorder_context import TrainingClock
from hvd_async.store.serve.client import StoreClient
from hvd_async.store.serve.server import StoreServer
from hvd_async.store.shards.shard_server import ShardServer
from hvd_async.strategies.asynchronous import RankRole
from hvd_async.tasks.dataset import DatasetTask
from hvd_async.transport.bootstrap import MpiGroup
from hvd_async.vectors import arithmetic

NUM_EPOCHS = 2
BATCHES_PER_EPOCH = 20
BATCH_SIZE = 8
ENVIRONMENT = "HVD_ASYNC_CHAOS"
"""Variable that tells a rank of the campaign from a replay."""
_ACCESSES = ("load", "load_words", "store", "store_words", "fetch_add", "compare_swap", "put", "get", "ring")


@dataclasses.dataclass(frozen=True)
class Strike:
    """A fault that `rank` causes itself: see `Moment`."""

    rank: int
    fault: str
    seconds: float
    point: str
    call: int
    access: int


def make_task(config: RunConfig, folder: str) -> DatasetTask:
    """Return the task; prepare this process for its strike, if it is a rank of a run."""
    launched = read_environment(os.environ)
    points = torch.randn(BATCHES_PER_EPOCH * BATCH_SIZE, 6, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(points, (points.sum(1) > 0).long())
    task = DatasetTask(
        config,
        model=lambda: torch.nn.Sequential(
            torch.nn.Linear(6, 1024), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(1024, 3)
        ),
        train=data,
        validation=data,
        batch_size=BATCH_SIZE,
        loss=lambda outputs, batch: F.cross_entropy(outputs, batch[1], reduction="sum"),
        weight_unit="points",
    )
    if ENVIRONMENT in os.environ:  # not in a replay
        _prepare(task, pathlib.Path(folder), 0 if launched is None else launched.rank)
    return task


def _prepare(task: DatasetTask, folder: pathlib.Path, rank: int) -> None:
    if rank == 0:
        _note_progress(folder)
    _around(task, "evaluate", lambda: note_once(folder / "measuring", lambda: None))
    with contextlib.suppress(FileNotFoundError):
        strike = Strike(**json.loads((folder / "strike.json").read_text()))
        if strike.rank == rank and not (folder / "struck").exists():
            _arm(strike, task, folder)


def _note_progress(folder: pathlib.Path) -> None:
    """Note when training begins, and the version of each update."""
    start, updated = TrainingClock.start, Events.updated

    def start_and_note(clock: TrainingClock) -> None:
        start(clock)
        # A second start of the run goes on with the seconds of the first, which is the one that counts.
        note_once(folder / "started", lambda: None)

    def note_and_update(events: Events, update: Any) -> None:
        (folder / "version").write_text(str(update.version))
        updated(events, update)

    TrainingClock.start = start_and_note  # type: ignore[method-assign]
    Events.updated = note_and_update  # type: ignore[method-assign]


def note_once(path: pathlib.Path, act: Callable[[], None]) -> None:
    """Write the time into `path` and call `act`, if `path` does not exist."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return
    os.write(descriptor, repr(time.time()).encode())
    os.close(descriptor)
    act()


def _around(owner: Any, name: str, before: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
    original = getattr(owner, name)

    def acting(*arguments: Any, **options: Any) -> Any:
        before()
        result = original(*arguments, **options)
        after()
        return result

    setattr(owner, name, acting)


def _arm(strike: Strike, task: DatasetTask, folder: pathlib.Path) -> None:
    """Have this process struck at the call, or before the access, that `strike` names."""
    calls = itertools.count()

    def strike_once() -> None:
        note_once(folder / "struck", lambda: _happen(strike))

    def strike_at_call() -> None:
        if next(calls) >= strike.call:
            strike_once()

    if strike.point == "step":
        _around(task, "loss", strike_at_call)
    elif strike.point == "evaluate":
        _around(task, "evaluate", strike_at_call)
    elif strike.point == "before allgather":
        _around(MpiGroup, "allgather", strike_at_call)
    elif strike.point == "after allgather":
        _around(MpiGroup, "allgather", lambda: None, strike_at_call)
    elif strike.point == "begin":  # when all ranks have met, and before this one shows a heartbeat
        _around(RankRole, "playing", strike_at_call)
    else:
        owner = next(kind for kind in (StoreClient, StoreServer, ShardServer) if hasattr(kind, strike.point))
        _arm_accesses(owner, strike, calls, strike_once)


def _arm_accesses(owner: Any, strike: Strike, calls: Iterator[int], act: Callable[[], None]) -> None:
    """Call `act` before the access that `strike` names, which only the thread within the call makes."""
    from hvd_async.transport.mpi import SharedMemory
    from hvd_async.transport.remote_memory import RemoteMemory

    within, accesses = threading.local(), itertools.count()

    def note_access() -> None:
        if getattr(within, "is_inside", False) and next(accesses) == strike.access:
            act()

    def enter() -> None:
        within.is_inside = next(calls) >= strike.call

    def leave() -> None:
        within.is_inside = False

    _around(owner, strike.point, enter, leave)
    for kind in (SharedMemory, RemoteMemory):
        for name in _ACCESSES:
            _around(kind, name, note_access)
    _around(arithmetic, "copy_and_measure", note_access)  # the gradient, into the mapped slot


def _happen(strike: Strike) -> None:
    sys.stderr.write(f"chaos: {strike.fault} strikes rank {strike.rank}\n")
    sys.stderr.flush()
    if strike.fault == "exception":
        raise ZeroDivisionError("injected")
    if strike.fault == "exit":
        os._exit(1)
    if strike.fault == "held lock":
        ctypes.PyDLL(None).usleep(int(1e6 * strike.seconds))
        return
    os.kill(os.getpid(), signal.Signals[strike.fault])
