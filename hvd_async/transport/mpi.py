"""Blocks over MPI: shared memory for the ranks of a block's node, one-sided communication for the others.

Both exist at once over the same memory, a choice based on measurements: within a node a shared window runs at the speed
of memory and needs no help from its owner; a second window, created over the same block, serves ranks on other nodes.
Over a network no MPI completes a passive operation while its target computes, so a block's owner runs a progress thread
while there are ranks on other nodes. That thread also does by message what is faster so: long transfers, and atomic
operations, which then are the processor's own for all ranks. Where a rank lacks the C extension that has these, atomic
operations of all ranks go through one window of MPI, because others are not atomic with those.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from mpi4py import MPI

from hvd_async.errors import SetupError
from hvd_async.system import shared_memory
from hvd_async.system.shared_memory import Place
from hvd_async.transport import host_memory
from hvd_async.transport.block import BlockT
from hvd_async.transport.bootstrap import MpiGroup
from hvd_async.transport.host_memory import HostMemory
from hvd_async.transport.progress import ProgressThread
from hvd_async.transport.remote_memory import FarWindow, RemoteMemory
from hvd_async.vectors import arithmetic


class SharedMemory(HostMemory[BlockT]):
    """The block mapped into a rank of its owner's node."""

    def __init__(
        self, layout: BlockT, block: MappedBlock, atomics: FarWindow | None, progress: ProgressThread | None
    ) -> None:
        """Use `block`; fetch-and-add goes through `atomics`; None: the processor's own."""
        super().__init__(layout, block.memory)
        self.place = block.place
        """Where other processes of this host find the block; None: only MPI's ranks can."""
        self.is_direct = atomics is None
        """Whether atomic operations are the processor's, so that other processes of this host may use the block."""
        self._window = block.window
        self._atomics = atomics
        self._progress = progress

    def fetch_add(self, word: int, amount: int) -> int:
        if self._atomics is None:
            return super().fetch_add(word, amount)
        return self._atomics.fetch_and_op(word, amount, MPI.SUM)

    def compare_swap(self, word: int, expected: int, value: int) -> int:
        if self._atomics is None:
            return super().compare_swap(word, expected, value)
        return self._atomics.compare_and_swap(word, expected, value)

    def load(self, word: int) -> int:
        """Read a control word. On the owner, raises `PeerError` once its progress thread has met a failed rank."""
        if self._progress is not None:
            self._progress.check()
        return super().load(word)

    def dead_ranks(self) -> frozenset[int]:
        return frozenset() if self._progress is None else self._progress.dead_ranks

    def _fence(self) -> None:
        if self._window is None:
            super()._fence()
        else:
            self._window.Sync()


@dataclass(frozen=True)
class MappedBlock:
    """A block in the shared memory of this node. `place`: where it is, or, if only MPI can share memory here, its `window`."""

    memory: memoryview
    place: Place | None
    window: MPI.Win | None

    def atomics(self, position: int) -> FarWindow | None:
        """Return the window for fetch-and-adds, in which the owner has `position`; None: they are the processor's own."""
        return None if self.window is None or arithmetic.has_doorbells() else FarWindow(self.window, position)

    def free(self) -> None:
        """Free the window, collectively over its ranks, or close the memory, which lives on as long as others map it."""
        if self.window is not None:
            self.window.Unlock_all()
            self.window.Free()
        elif self.place is not None and self.place.process == os.getpid():
            os.close(self.place.descriptor)


@contextlib.contextmanager
def open_blocks(
    group: MpiGroup,
    layouts: Sequence[BlockT],
    owners: Sequence[int],
    timeout_seconds: float = 60.0,
    names: Sequence[str] = (),
) -> Iterator[list[SharedMemory[BlockT] | RemoteMemory[BlockT]]]:
    """Yield all blocks as this rank reaches them; block k is on rank `owners[k]`, which messages call `names[k]`.

    Collective over `group`, on entry and on an orderly exit. An exit by an exception frees nothing, since the other ranks
    may never come; the job must then be aborted. A rank on another node whose operation takes longer than
    `timeout_seconds` ends itself with a message. A rank owns at most one block. There must be memory for all blocks: see
    `capacity.check_capacity`.
    """
    node = cast(MPI.Intracomm, group.comm.Split_type(MPI.COMM_TYPE_SHARED, key=group.rank))
    neighbours = _ranks_of(node, group.rank)
    with contextlib.ExitStack() as stack:
        opener = _Opener(group, node, neighbours, stack, timeout_seconds)
        names = names or [f"the owner of a block (rank {owner})" for owner in owners]
        memories = [opener.open(layout, owner, name) for layout, owner, name in zip(layouts, owners, names, strict=True)]
        group.allgather("")  # no rank reads before the owners have touched their blocks
        yield memories
        group.allgather("")  # the progress threads serve until every rank is done
    if group.is_shrunk:
        return  # to free a window would wait for the dead
    for window in reversed(opener.windows):
        window.Unlock_all()
        window.Free()
    for block in reversed(opener.blocks):
        block.free()


@contextlib.contextmanager
def open_node_block(group: MpiGroup, layout: BlockT | None, owner: int) -> Iterator[SharedMemory[BlockT] | None]:
    """Yield a block shared by the ranks of one node, on rank `owner` of `group`; None if `layout` is None.

    Collective over `group`; the ranks of a node pass the same `layout` and `owner`, which is one of them. Otherwise like
    `open_blocks`.
    """
    node = cast(MPI.Intracomm, group.comm.Split_type(MPI.COMM_TYPE_SHARED, key=group.rank))
    if layout is None:
        yield None
        group.allgather("")
        return
    position = _ranks_of(node, group.rank).index(owner)
    mapped = _map_block(node, position, layout.total_bytes if group.rank == owner else 0)
    memory = _touched(layout, mapped, mapped.atomics(position), None, group.rank == owner)
    node.Barrier()
    yield memory
    group.allgather("")
    if not group.is_shrunk:  # to free a window would wait for the dead
        mapped.free()


@dataclass(frozen=True)
class _Opener:
    """Opens blocks one after the other: `windows` and `blocks` collect what is to be freed, `stack` the threads to end."""

    group: MpiGroup
    node: MPI.Intracomm
    neighbours: Sequence[int]  # ranks of `group` on this node
    stack: contextlib.ExitStack
    timeout_seconds: float
    windows: list[MPI.Win] = field(default_factory=list)
    blocks: list[MappedBlock] = field(default_factory=list)

    def open(self, layout: BlockT, owner: int, name: str) -> SharedMemory[BlockT] | RemoteMemory[BlockT]:
        """Open the next block, which is on rank `owner`, called `name` in messages. Collective over `group`."""
        is_owner = self.group.rank == owner
        mapped: MappedBlock | None = None
        if owner in self.neighbours:
            mapped = _map_block(self.node, self.neighbours.index(owner), layout.total_bytes if is_owner else 0)
            self.blocks.append(mapped)
        told = self.group.allgather(f"{'far' if mapped is None else 'near'} {int(arithmetic.has_doorbells())}")
        if not any(each.startswith("far") for each in told):
            assert mapped is not None
            return _touched(layout, mapped, mapped.atomics(self.neighbours.index(owner)), None, is_owner)
        asks = all(each.endswith("1") for each in told)
        created = MPI.Win.Create(mapped.memory if is_owner and mapped is not None else None, 1, comm=self.group.comm)
        created.Lock_all(MPI.MODE_NOCHECK)
        self.windows.append(created)
        far, messages = FarWindow(created, owner), self.group.comm.Dup()
        if mapped is None:
            return RemoteMemory(layout, far, messages, name, self.timeout_seconds, asks=asks)
        progress: ProgressThread | None = None
        if is_owner:
            progress = self.stack.enter_context(ProgressThread(messages, mapped.memory, layout))
        return _touched(layout, mapped, None if asks else far, progress, is_owner)


def _touched(
    layout: BlockT, mapped: MappedBlock, atomics: FarWindow | None, progress: ProgressThread | None, is_owner: bool
) -> SharedMemory[BlockT]:
    memory = SharedMemory(layout, mapped, atomics, progress)
    if is_owner:
        _touch(memory)
    return memory


def _ranks_of(node: MPI.Intracomm, rank: int) -> list[int]:
    """Return the ranks in the whole group of the ranks of `node`, in which this rank is `rank`. Collective over `node`."""
    ranks = np.zeros(node.Get_size(), dtype=np.int64)
    node.Allgather(np.array([rank], dtype=np.int64), ranks)
    result: list[int] = ranks.tolist()
    return result


def _map_block(node: MPI.Intracomm, position: int, num_bytes: int) -> MappedBlock:
    """Map the block of the rank at `position` of `node`, which passes its `num_bytes`; the other ranks pass 0. Collective
    over `node`."""
    words = np.zeros(5, dtype=np.int64)
    if node.Get_rank() == position and host_memory.is_available():
        with contextlib.suppress(OSError):  # then MPI makes it
            words[:] = dataclasses.astuple(shared_memory.make(num_bytes))
    node.Bcast(words, root=position)
    place, memory = Place(*words.tolist()), None
    if place.is_here and host_memory.is_available():
        with contextlib.suppress(SetupError):
            memory = shared_memory.map_place(place)
    is_open = np.array([memory is not None], dtype=np.int64)
    node.Allreduce(MPI.IN_PLACE, is_open, MPI.MIN)
    if memory is not None and is_open[0]:
        return MappedBlock(memory, place, None)
    # Ranks in containers with processes of their own, or a system without such memory.
    window = MPI.Win.Allocate_shared(num_bytes, 1, comm=node)
    window.Lock_all(MPI.MODE_NOCHECK)
    buffer: Any = window.Shared_query(position)[0]  # a buffer, although mpi4py's stubs do not say so
    return MappedBlock(memoryview(buffer), None, window)


def _touch(memory: SharedMemory[BlockT]) -> None:
    """Give every page its memory now, zeroed: the first touch of a window is ten times slower than a copy.

    If its owner is alone on a node, Open MPI's shared window is ordinary memory with old contents.
    """
    memory.vector(0, memory.layout.total_bytes, torch.uint8).zero_()
