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
import ctypes
import dataclasses
import functools
import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, cast

import numpy as np
import numpy.typing as npt
import torch
from mpi4py import MPI

from hvd_async.errors import PeerError, SetupError
from hvd_async.system import shared_memory
from hvd_async.system.shared_memory import Place
from hvd_async.transport import host_memory
from hvd_async.transport.block import WORD_BYTES, BlockT
from hvd_async.transport.bootstrap import MpiGroup
from hvd_async.transport.host_memory import HostMemory
from hvd_async.transport.progress import ProgressThread, Request, Tag, chunks_of
from hvd_async.transport.pulse import FarWord, NativePulse, Pulse, Rhythm, ThreadPulse
from hvd_async.vectors import arithmetic

# Parts of a block of at least this size travel as messages.
_MESSAGE_BYTES = 1 << 14
# A slower link counts as broken.
_SLOWEST_BYTES_PER_SECOND = 1e6


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


class RemoteMemory(Generic[BlockT]):
    """The block of another node, reached by one-sided communication."""

    name = "RMA"
    has_bells = False
    is_remote = True

    def __init__(
        self, layout: BlockT, far: FarWindow, messages: MPI.Comm, what: str, timeout_seconds: float, *, asks: bool
    ) -> None:
        """Use the window of `far`, which exposes the block on its owner in bytes and is locked for the life of this object;
        `messages` is the communicator of the owner's progress thread.

        `asks`: atomic operations are requests to this thread, not one-sided. An operation that takes longer than
        `timeout_seconds` ends this process, since MPI would wait for a dead owner forever. `what` names the owner in
        messages.
        """
        self.layout = layout
        self._far = far
        self._window = far.window
        self._owner = far.owner
        self._messages = messages
        self._asks = asks
        # Transfers to here, to the owner, and exchanges of words: one at a time of each, so that the messages of two threads
        # are not mixed up.
        self._reading, self._writing, self._exchanging = threading.Lock(), threading.Lock(), threading.Lock()
        self._flushing = threading.Lock()
        self._what = what
        self._timeout_seconds = timeout_seconds
        self._deadlines: dict[int, float] = {}  # operations under way
        self._num_unflushed_bytes = 0
        self._unflushed: list[_Put] = []
        self._numbers = itertools.count()
        threading.Thread(target=self._watch, name="hvd-async-watchdog", daemon=True).start()

    def load(self, word: int) -> int:
        """Read a control word by Get: one load on the target for an aligned word, and faster than a message."""
        return self.load_words(word, 1)[0]

    def store(self, word: int, value: int) -> None:
        if self._asks:
            self._exchange(Request.STORE, word, value)
            return
        # An atomic replaces the value only after the puts flushed before it; a plain Put of 8 bytes does not guarantee
        # that.
        with self._watched():
            self._far.fetch_and_op(word, value, MPI.REPLACE)

    def store_words(self, first: int, values: Sequence[int]) -> None:
        self.put(WORD_BYTES * first, torch.tensor(values, dtype=torch.int64))

    def load_words(self, first: int, count: int) -> list[int]:
        words = torch.empty(count, dtype=torch.int64)
        self.get(WORD_BYTES * first, words)
        values: list[int] = words.tolist()
        return values

    def fetch_add(self, word: int, amount: int) -> int:
        if self._asks:
            return self._exchange(Request.ADD, word, amount)
        with self._watched():
            return self._far.fetch_and_op(word, amount, MPI.SUM)

    def compare_swap(self, word: int, expected: int, value: int) -> int:
        if self._asks:
            return self._exchange(Request.SWAP, word, expected, value)
        with self._watched():
            return self._far.compare_and_swap(word, expected, value)

    def beat(self, word: int, rhythm: Rhythm) -> Pulse:
        far = _far_word(self._messages, self._owner, word) if self._asks else None
        if far is None:
            return ThreadPulse(functools.partial(self.store, word), rhythm)
        return NativePulse(far, rhythm, self, self._watched)

    def put(self, offset: int, source: torch.Tensor) -> None:
        data = _bytes_of(source)
        self._num_unflushed_bytes += data.size
        with self._watched():
            messages = []
            if data.size >= _MESSAGE_BYTES:
                messages = self._send(offset, data)
            elif data.size:
                self._window.Put(data, self._owner, target=(offset, data.size, MPI.BYTE))
        self._unflushed.append(_Put(source, data.size, messages))

    def _send(self, offset: int, data: npt.NDArray[np.uint8]) -> list[MPI.Request]:
        with self._writing:
            self._ask(Request.TAKE, offset, data.size)
            messages = [self._messages.Isend(chunk, self._owner, Tag.DATA) for chunk in chunks_of(data)]
            return [*messages, self._messages.Irecv(np.zeros(0, dtype=np.uint8), self._owner, Tag.TAKEN)]

    def flush(self) -> None:
        with (
            self._flushing,
            self._watched(),
        ):  # whoever flushes waits for all puts, also for those that another thread waits for
            puts, self._unflushed = self._unflushed, []  # without those that another thread makes in the meantime
            self._window.Flush(self._owner)
            for put in puts:
                MPI.Request.Waitall(put.messages)
                self._num_unflushed_bytes -= put.num_bytes

    def get(self, offset: int, target: torch.Tensor) -> None:
        data = _bytes_of(target)
        if data.size >= _MESSAGE_BYTES:
            self._ask_for(offset, data)
        elif data.size:
            with self._watched():
                self._window.Get(data, self._owner, target=(offset, data.size, MPI.BYTE))
                self._window.Flush(self._owner)

    def _ask_for(self, offset: int, data: npt.NDArray[np.uint8]) -> None:
        with self._reading:
            answers = [self._messages.Irecv(chunk, self._owner, Tag.ANSWER) for chunk in chunks_of(data)]
            with self._watched():
                self._ask(Request.GIVE, offset, data.size)
            for answer in answers:
                with self._watched():
                    answer.Wait()

    def _exchange(self, request: Request, *numbers: int) -> int:
        value = np.zeros(1, dtype=np.int64)
        with self._exchanging, self._watched():
            answer = self._messages.Irecv(value, self._owner, Tag.VALUE)
            self._ask(request, *numbers)
            answer.Wait()
        return int(value[0])

    def _ask(self, request: Request, *numbers: int) -> None:
        words = np.zeros(4, dtype=np.int64)
        words[: 1 + len(numbers)] = request, *numbers
        self._messages.Send(words, self._owner, Tag.REQUEST)

    def mapped(self, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor | None:
        return None

    def ring(self, bell: int) -> None:
        """Do nothing: the owner's progress thread sees what changed, and rings."""

    def heard(self, bell: int) -> int:
        return 0

    def wait(self, bell: int, heard: int, seconds: float) -> None:
        time.sleep(seconds)  # one-sided communication wakes no rank

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Watch an operation inside the block. It may take the configured time, and in addition what a slow link needs
        for everything put before, since whichever thread flushes waits for all of it."""
        number = next(self._numbers)
        allowed = self._timeout_seconds + self._num_unflushed_bytes / _SLOWEST_BYTES_PER_SECOND
        self._deadlines[number] = time.monotonic() + allowed
        try:
            yield
        finally:
            del self._deadlines[number]

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._timeout_seconds / 4))  # a watchdog checks this from time to time
            deadline = min(self._deadlines.copy().values(), default=None)
            if deadline is not None and time.monotonic() > deadline:
                sys.stderr.write(
                    f"hvd-async: {self._what} did not answer for {self._timeout_seconds:.0f} s"
                    " (strategy.store_timeout_seconds); its rank is dead, stopped or starved of a core\n"
                )
                sys.stderr.flush()
                os._exit(PeerError.exit_status)  # the thread is inside MPI and cannot be reached


@dataclass(frozen=True)
class _Put:
    """A put that is under way: MPI still reads `source`. `messages`: by which it travels; none: as one-sided operations."""

    source: torch.Tensor
    num_bytes: int
    messages: list[MPI.Request]


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


@dataclass(frozen=True)
class FarWindow:
    """A window over a block, and the rank of its owner there."""

    window: MPI.Win
    owner: int

    def fetch_and_op(self, word: int, value: int, op: MPI.Op) -> int:
        """Apply `op` with `value` to a control word; return the previous value."""
        before = np.zeros(1, dtype=np.int64)
        self.window.Fetch_and_op(np.array([value], dtype=np.int64), before, self.owner, WORD_BYTES * word, op)
        self.window.Flush(self.owner)
        return int(before[0])

    def compare_and_swap(self, word: int, expected: int, value: int) -> int:
        """Replace a control word that is `expected` by `value`; return the previous value."""
        before = np.zeros(1, dtype=np.int64)
        wanted, known = np.array([value], dtype=np.int64), np.array([expected], dtype=np.int64)
        self.window.Compare_and_swap(wanted, known, before, self.owner, WORD_BYTES * word)
        self.window.Flush(self.owner)
        return int(before[0])


def _far_word(messages: MPI.Comm, owner: int, word: int) -> FarWord | None:
    """Return how a thread of C asks the progress thread of rank `owner` to set a control word; None if MPI's functions are not
    found."""
    send = _address_of_send()
    if send is None:
        return None
    are_pointers = MPI._sizeof(messages) == ctypes.sizeof(ctypes.c_void_p)
    return FarWord(send, _handle(MPI.INT64_T), _handle(messages), owner, Tag.REQUEST, Request.BEAT, word, are_pointers)


@functools.cache
def _address_of_send() -> int | None:
    """Return the address of `MPI_Send` in the library that mpi4py uses; None if it hides it."""
    try:
        return ctypes.cast(ctypes.CDLL(MPI.__file__).MPI_Send, ctypes.c_void_p).value or None
    except (OSError, AttributeError):
        return None


def _handle(thing: MPI.Datatype | MPI.Comm) -> int:
    return MPI._handleof(thing) % 2**64  # an int may be negative


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


def _bytes_of(vector: torch.Tensor) -> npt.NDArray[np.uint8]:
    return vector.view(torch.uint8).numpy()
