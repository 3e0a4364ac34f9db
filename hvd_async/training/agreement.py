"""Steps that all ranks take together: what is wrong on one of them is raised on all, or ends all."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from hvd_async.errors import HvdAsyncError, OrphanedError, PeerError
from hvd_async.system.failures import tell
from hvd_async.transport.group import Group

T = TypeVar("T")
# How long a rank that was told of another's failure waits for the launcher to end it, before it ends the job itself.
_GRACE_SECONDS = 5.0


class AgreedError(HvdAsyncError):
    """An error that every rank raises because one did; the one that did reports it."""

    is_on_all_ranks = True

    def __init__(self, fault: tuple[int, str], is_reporter: bool) -> None:
        """`fault`: exit status and message; `is_reporter`: whether this rank is to print it."""
        self.exit_status, message = fault
        super().__init__(message)
        self.is_reporter = is_reporter


def in_agreement(group: Group, action: Callable[[], T]) -> T:
    """Do `action` on rank 0, then on the others, and raise everywhere what was raised anywhere. Collective."""
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
    """Do `action` on rank 0 alone, and return on all ranks what it gave; raise on all what it raised. Collective."""
    own = in_agreement(group, lambda: action() if group.rank == 0 else "")
    return group.allgather(own)[0]


@contextlib.contextmanager
def aborting_on_failure(group: Group) -> Iterator[None]:
    """An exception on this rank ends all ranks at once, with this rank's message as the only one."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, OrphanedError):
            tell(group.rank, error)
            os._exit(error.exit_status)  # nobody is left to tell MPI's end to
        is_interrupt = isinstance(error, KeyboardInterrupt)
        if not is_interrupt and (group.size == 1 or (isinstance(error, HvdAsyncError) and error.is_on_all_ranks)):
            raise
        tell(group.rank, error)
        if isinstance(error, PeerError) and error.is_reported:
            time.sleep(_GRACE_SECONDS)  # the rank that failed is about to end the job, or its launcher is
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        group.abort(error.exit_status if isinstance(error, HvdAsyncError) else 130 if is_interrupt else 1)
