"""Steps that all ranks take together: an error on one rank is raised on all ranks, or ends all."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from hvd_async.cluster.environment import keeps_other_ranks
from hvd_async.errors import HvdAsyncError, OrphanedError, PeerError, StoppedBySignal
from hvd_async.system.failure_message import tell
from hvd_async.transport.group import Group
from hvd_async.transport.segments import remove_segments

T = TypeVar("T")
# How long a rank, after the failure of another, waits for the launcher to end it, before it ends the job itself.
_GRACE_SECONDS = 5.0


class AgreedError(HvdAsyncError):
    """An error that every rank raises because one rank failed; the failed rank prints it."""

    is_on_all_ranks = True

    def __init__(self, fault: tuple[int, str], is_reporter: bool) -> None:
        """`fault`: exit status and message; `is_reporter`: whether this rank is to print it."""
        self.exit_status, message = fault
        super().__init__(message)
        self.is_reporter = is_reporter


def in_agreement(group: Group, action: Callable[[], T]) -> T:
    """Run `action` on rank 0, then on the others, and return its result; an error on one rank is raised on all.
    Collective."""
    result: T | None = None
    for turn in (0, 1):
        fault = ""
        if (group.rank == 0) == (turn == 0):
            try:
                result = action()
            except HvdAsyncError as error:
                fault = json.dumps([error.exit_status, str(error)])
        faults = group.allgather(fault)
        for rank, text in enumerate(faults):
            if text:
                raise AgreedError(json.loads(text), is_reporter=rank == group.rank)
    return result  # type: ignore[return-value]  # every rank had its turn


def told_by_rank_0(group: Group, action: Callable[[], str]) -> str:
    """Run `action` on rank 0 alone, and return its result, or raise its error, on all ranks. Collective."""
    own = in_agreement(group, lambda: action() if group.rank == 0 else "")
    return group.allgather(own)[0]


def _may_be_alone(error: BaseException) -> bool:
    """Whether this rank alone may end by `error`, a signal, where its mpirun would keep the others, which wait for it."""
    return isinstance(error, StoppedBySignal) and keeps_other_ranks(os.environ)


@contextlib.contextmanager
def aborting_on_failure(group: Group) -> Iterator[None]:
    """End all ranks at once after an exception on this rank, which alone prints a message. A context manager."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, OrphanedError):
            tell(group.rank, error)
            remove_segments()
            os._exit(error.exit_status)  # without MPI_Finalize, which would wait for ranks that have gone
        is_interrupt = isinstance(error, KeyboardInterrupt)
        is_on_all = isinstance(error, HvdAsyncError) and error.is_on_all_ranks
        if not is_interrupt and (group.size == 1 or (is_on_all and not _may_be_alone(error))):
            raise
        tell(group.rank, error)
        if isinstance(error, PeerError) and error.is_reported:
            time.sleep(_GRACE_SECONDS)  # the rank that failed is about to end the job, or its launcher is
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        if isinstance(error, PeerError) and error.is_none_left:
            os._exit(error.exit_status)  # after MPI_Abort without other ranks, mpirun returns 0 or the status, as it happens
        group.abort(error.exit_status if isinstance(error, HvdAsyncError) else 130 if is_interrupt else 1)
