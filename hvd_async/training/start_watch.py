"""A watch over the start of a job whose mpirun keeps the other ranks when one ends: MPI would wait for it for ever."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import NoReturn

from hvd_async.cluster.environment import LaunchedAs, keeps_other_ranks, read_environment
from hvd_async.cluster.pmix import job_of, read_pmix
from hvd_async.system.failure_message import print_message
from hvd_async.system.parent_death import tie_to
from hvd_async.system.patience import Patience
from hvd_async.system.process_state import children_of, parent_of, state_of, variables_of
from hvd_async.transport.neighbour_watch import ITS_OWN_MESSAGE, STOPPED_SECONDS

_LOOK_SECONDS = 0.25
# Time in which a launcher starts all ranks of a host.
_START_SECONDS = 10.0
# Time that this rank has to end by itself, since the others may just be quicker, and time between the ranks' messages.
_GRACE_SECONDS = 2.0
_TURN_SECONDS = 0.3


@contextlib.contextmanager
def watching_start(environ: Mapping[str, str]) -> Iterator[None]:
    """End the whole job, inside the block, if another rank of this host ends, or is stopped for ever; a context manager.

    After the block the store watches its workers. Does nothing under launchers that end the job themselves. A process
    watches, since MPI's start keeps Python's lock.
    """
    launched = read_environment(environ)
    if not keeps_other_ranks(environ) or launched is None or (launched.local_size or 1) == 1:
        yield
        return
    launcher, rank = _launcher(), os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child uses nothing that another thread may hold
        watcher = os.fork()
    if watcher == 0:
        _watch(launched, launcher, rank)
    try:
        yield
    finally:
        os.kill(watcher, signal.SIGKILL)
        os.waitpid(watcher, 0)


def _watch(launched: LaunchedAs, launcher: int, rank: int) -> NoReturn:
    """End the job when another rank ends, or is stopped; in a process of its own, which ends with `rank`."""
    try:
        tie_to(rank, signal.SIGKILL)
        if fault := _fault(launched, launcher):
            print_message(f"hvd-async: rank {launched.rank}: another rank of this host{fault}\n")
            os.kill(launcher, signal.SIGTERM)  # it ends all ranks, on all hosts
    finally:
        os._exit(0)


def _fault(launched: LaunchedAs, launcher: int) -> str:
    """Wait until another rank has ended, or is stopped for long; return which. Empty if the launcher is gone."""
    began, seen, num_ranks = time.monotonic(), set[int](), launched.local_size or 1
    turn, with_stopped = _TURN_SECONDS * (launched.local_rank or 0), Patience(STOPPED_SECONDS, _LOOK_SECONDS)
    while (children := children_of(launcher)) is not None:
        seen |= {child for child in children - seen if _is_rank(child)}
        if not seen <= children or (time.monotonic() - began > _START_SECONDS and len(seen) < num_ranks):
            time.sleep(_GRACE_SECONDS + turn)
            return f" has ended before training began; {ITS_OWN_MESSAGE}"
        stopped = {child for child in seen if state_of(child) == "T"}
        if with_stopped.is_over(lasts=bool(stopped) and stopped < seen):  # all of them: somebody has suspended the job
            time.sleep(turn)
            return f", process {min(stopped)}, has been stopped (SIGSTOP) for {STOPPED_SECONDS:.0f} s before training began"
        time.sleep(_LOOK_SECONDS)
    return ""


def _launcher() -> int:
    """Return the process that started the ranks, perhaps by way of other programs."""
    process = os.getppid()
    while _is_rank(process) and (parent := parent_of(process)) is not None:
        process = parent
    return process


def _is_rank(process: int) -> bool:
    """Whether a process is a rank of this job, not a connection to another host, nor a part of a job in which this one was
    started: those have another namespace in their variables, or none."""
    variables = variables_of(process)
    started_as = read_pmix(variables)
    return variables is None or (started_as is not None and started_as.job == job_of(os.environ))
