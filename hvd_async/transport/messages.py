"""Plain messages between ranks, to compare one-sided transfers with. Import this module after `init_mpi`."""

from __future__ import annotations

import time
from typing import cast

import torch
from mpi4py import MPI

from hvd_async.transport.bootstrap import MpiGroup
from hvd_async.transport.group import messages_of

_WAIT_SECONDS = 0.005


class PointToPoint:
    """Send and Recv among the ranks of a group, on a communicator of its own."""

    def __init__(self, group: MpiGroup) -> None:
        """Duplicate the communicator of `group`, which stays the caller's. Collective."""
        self.rank = group.rank
        self._comm = group.comm.Dup()

    def send(self, rank: int, data: torch.Tensor) -> None:
        """Send contiguous `data` on the CPU to `rank`. May block until `rank` receives."""
        for chunk in messages_of(data):
            self._comm.Send(chunk.numpy(), rank)

    def receive(self, rank: int, data: torch.Tensor) -> None:
        """Receive a message of `rank` into contiguous `data` of the message's size. Blocks, and keeps a core busy."""
        for chunk in messages_of(data):
            self._comm.Recv(chunk.numpy(), rank)

    def waiting(self) -> int | None:
        """Return the rank whose message is waiting to be received, None if there is none. Does not block."""
        status = MPI.Status()
        return status.Get_source() if self._comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status) else None

    def free(self) -> None:
        """Free the communicator. Collective."""
        self._comm.Free()


def first_ranks(group: MpiGroup, count: int) -> MpiGroup | None:
    """Return ranks 0 to `count` - 1 of `group` as a group; None on the others. Collective over `group`."""
    return _part(group, is_in=group.rank < count)


def all_but_first(group: MpiGroup) -> MpiGroup | None:
    """Return the ranks of `group` from 1 on as a group; None on rank 0. Collective over `group`."""
    return _part(group, is_in=group.rank > 0)


def _part(group: MpiGroup, is_in: bool) -> MpiGroup | None:
    comm = cast(MPI.Intracomm, group.comm.Split(0 if is_in else MPI.UNDEFINED, key=group.rank))
    return None if comm == MPI.COMM_NULL else MpiGroup(comm)


def wait_quietly(group: MpiGroup) -> None:
    """Wait until all ranks of `group` are here; other than MPI's own barrier, leave the core to others in the meantime."""
    request = group.comm.Ibarrier()
    while not request.Test():
        time.sleep(_WAIT_SECONDS)  # MPI cannot wake a rank
