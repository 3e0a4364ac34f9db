"""Steps that all ranks take together, so that what is wrong on one of them is raised on all."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

from hvd_async.errors import HvdAsyncError
from hvd_async.transport.group import Group

T = TypeVar("T")


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
