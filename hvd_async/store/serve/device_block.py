"""A store's block whose vectors are on a GPU: the contents of each memory, and how the ranks of a run access them.

Published parameters and slots are on the GPU, with the layout of the host's block. The host's block remains: it holds the
control words, and the slots and copies for workers that cannot access the GPU's memory. For these workers the store copies a
slot to the GPU when it takes the slot in, and a new version to the host before it announces the version.

The order of writes is the protocol's, but device work continues after the call that started it. So everything here, and
everything in `vectors.arithmetic`, waits for its stream before it returns: the word that announces a copy is written after
the copy is complete, and the word that frees memory after the last read.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from hvd_async.cluster.topology import RankPlan
from hvd_async.errors import SetupError
from hvd_async.store.wire.layout import Layout, StoreMemory, StoreWindow
from hvd_async.transport import cuda_ipc
from hvd_async.transport.block import WORD_BYTES
from hvd_async.transport.group import Group
from hvd_async.transport.pulse import Pulse, Rhythm
from hvd_async.vectors import arithmetic

# The owner writes the mark at the beginning of the block before anything else; a rank that opens the block checks it.
_MARK = 0x6876645F6173796E


class DeviceWindow:
    """A window whose slots and published parameters are on a GPU, in `device_memory`. Implements `Window`.

    `put` and `get` take tensors on any device. The memory belongs to the window until `close`.
    """

    name = "CUDA IPC"

    def __init__(self, host: StoreWindow, device_memory: torch.Tensor) -> None:
        """`host` reaches the block of the host; `device_memory`: [device_bytes(layout)] uint8."""
        self.layout: Layout = host.layout
        self.has_bells = host.has_bells
        self.is_remote = host.is_remote
        self._host = host
        self._start = host.layout.published_offset(0)
        self._device_memory: torch.Tensor | None = device_memory

    def load(self, word: int) -> int:
        return self._host.load(word)

    def store(self, word: int, value: int) -> None:
        self._host.store(word, value)

    def store_words(self, first: int, values: Sequence[int]) -> None:
        self._host.store_words(first, values)

    def load_words(self, first: int, count: int) -> list[int]:
        return self._host.load_words(first, count)

    def fetch_add(self, word: int, amount: int) -> int:
        return self._host.fetch_add(word, amount)

    def compare_swap(self, word: int, expected: int, value: int) -> int:
        return self._host.compare_swap(word, expected, value)

    def beat(self, word: int, rhythm: Rhythm) -> Pulse:
        return self._host.beat(word, rhythm)

    def put(self, offset: int, source: torch.Tensor) -> None:
        if offset < self._start:
            self._host.put(offset, source)
        else:
            arithmetic.copy(source, self._on_device(offset, source.numel(), source.dtype))

    def flush(self) -> None:
        self._host.flush()

    def get(self, offset: int, target: torch.Tensor) -> None:
        if offset < self._start:
            self._host.get(offset, target)
        else:
            # Must block: the client reads NEXT_VERSION next, which is a check only of bytes that were read before.
            arithmetic.copy(self._on_device(offset, target.numel(), target.dtype), target)

    def mapped(self, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Return memory of the GPU, to be written with functions of `vectors.arithmetic`, which wait for the device."""
        if offset < self._start:
            return self._host.mapped(offset, count, dtype)
        return self._on_device(offset, count, dtype)

    def ring(self, bell: int) -> None:
        self._host.ring(bell)

    def heard(self, bell: int) -> int:
        return self._host.heard(bell)

    def wait(self, bell: int, heard: int, seconds: float) -> None:
        self._host.wait(bell, heard, seconds)

    def close(self) -> None:
        """Release the memory. No views of it may exist any more."""
        self._device_memory = None

    def _on_device(self, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        assert self._device_memory is not None, "closed"
        begin = offset - self._start
        return self._device_memory[begin : begin + dtype.itemsize * count].view(dtype)


class DeviceMemory(DeviceWindow):
    """The block as its owner accesses it. Implements `StoreMemory`.

    Attributes:
        host_slots: slots in the host's memory, of workers that also read published parameters there.
    """

    name = "device memory"

    def __init__(self, host: StoreMemory, device_memory: torch.Tensor, host_slots: Collection[int]) -> None:
        """`host` is the host's block; `device_memory`: [device_bytes(layout)] uint8."""
        super().__init__(host, device_memory)
        self._host_memory = host
        self.host_slots = frozenset(host_slots)
        self._host_offsets = {self.layout.slot_offset(slot) for slot in host_slots}

    def vector(self, offset: int, count: int | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        count = self.layout.num_elements if count is None else count
        if offset < self._start:
            return self._host_memory.vector(offset, count, dtype)
        return self._on_device(offset, count, dtype)

    def bring_in(self, offset: int, num_bytes: int) -> None:
        """Copy a slot to the GPU if it is in the host's memory, where it may be written again on return."""
        if offset in self._host_offsets:
            self._copy(offset, num_bytes, to_device=True)

    def bring_out(self, offset: int, num_bytes: int) -> None:
        """Copy a vector to the host if there are host slots. The announcement for the GPU's copy, NEXT_VERSION or
        NEXT_PROVISIONAL, covers the host's copy too."""
        if self.host_slots:
            self._copy(offset, num_bytes, to_device=False)

    def dead_ranks(self) -> frozenset[int]:
        return self._host_memory.dead_ranks()

    def _copy(self, offset: int, num_bytes: int, *, to_device: bool) -> None:
        here = self._host_memory.vector(offset, num_bytes, torch.uint8)
        there = self._on_device(offset, num_bytes, torch.uint8)
        arithmetic.copy(*((here, there) if to_device else (there, here)))


@dataclass(frozen=True)
class Reach:
    """The block of shard 0 on one rank: `worker` for its worker; `store` for its shard, on the owner alone."""

    worker: StoreWindow
    store: StoreMemory | None = None

    @property
    def is_direct(self) -> bool:
        """Whether the worker's vectors may stay on its GPU."""
        return isinstance(self.worker, DeviceWindow)


def device_bytes(layout: Layout) -> int:
    """Return the bytes of device memory for published parameters and slots."""
    return layout.slot_offset(layout.slots) - layout.published_offset(0)


@contextlib.contextmanager
def open_device_block(
    group: Group, plans: Sequence[RankPlan], host: StoreWindow, slot_of_rank: Mapping[int, int]
) -> Iterator[Reach]:
    """Open the block of a store whose `store_device` is a GPU, for this rank; a context manager.

    Collective over `group`, on entry and on an orderly exit, which must come before `host` is closed. An exit by an
    exception releases nothing, since the job is then aborted. `host` is this rank's window on the block of shard 0, on the
    owner a `StoreMemory`; `slot_of_rank` maps ranks that train to their slots. A rank that cannot open the GPU's memory
    falls back to the host's memory and reports the reason. Raises `SetupError` on the owner if the GPU has too little
    memory.
    """
    owner = next(plan for plan in plans if plan.shard == 0)
    if group.rank == owner.rank:
        with _owning(group, plans, cast(StoreMemory, host), slot_of_rank) as reach:  # an owner's block is mapped
            yield reach
        return
    me = plans[group.rank]
    tickets = json.loads(group.allgather("")[owner.rank])
    window: DeviceWindow | None = None
    fault = ""
    if me.opens_store:
        try:
            window = DeviceWindow(host, _open(tickets[str(me.rank)], me))
        except RuntimeError as error:
            fault = " ".join(str(error).split()) or type(error).__name__
    group.allgather(fault)
    yield Reach(host if window is None else window)
    if window is not None:
        window.close()
    group.allgather("")  # the owner frees the memory only when all have closed it


@contextlib.contextmanager
def _owning(group: Group, plans: Sequence[RankPlan], host: StoreMemory, slot_of_rank: Mapping[int, int]) -> Iterator[Reach]:
    me = plans[group.rank]
    device = torch.device(me.store_device or "cpu")
    device_memory = _allocate(host.layout, device)
    readers = [plan.rank for plan in plans if plan.opens_store]
    handles, tickets = _export(device_memory, readers)
    group.allgather(json.dumps(tickets))
    faults = group.allgather("")
    for rank in readers:
        if faults[rank]:
            _fall_back(rank, faults[rank], handles.get(rank))
    direct = {rank for rank in readers if not faults[rank]}
    if me.is_direct:  # the process that makes a handle cannot open it, and need not
        direct.add(me.rank)
    memory = DeviceMemory(host, device_memory, [slot for rank, slot in slot_of_rank.items() if rank not in direct])
    del device_memory
    with contextlib.ExitStack() as stack:
        if memory.host_slots:
            block = host.vector(0, host.layout.total_bytes, torch.uint8)
            if not stack.enter_context(cuda_ipc.locked(block, device)):
                sys.stderr.write("hvd-async: the store's block cannot be locked (ulimit -l): slower copies to its GPU\n")
        yield Reach(memory if me.is_direct else host, memory)
    group.allgather("")  # all ranks have closed the memory
    memory.close()


def _allocate(layout: Layout, device: torch.device) -> torch.Tensor:
    num_bytes = device_bytes(layout)
    try:
        device_memory = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    except torch.cuda.OutOfMemoryError:
        free, _ = torch.cuda.mem_get_info(device)
        raise SetupError(
            f"store.device: got {device} with {free / 2**30:.1f} GiB free, expected {num_bytes / 2**30:.1f} GiB ="
            f" {layout.num_buffers + layout.num_provisional} published copies and {layout.slots} slots; use fewer workers,"
            " push.dtype: bfloat16,"
            " store.published_buffers: 2, another GPU, or store.device: cpu"
        ) from None
    device_memory[:WORD_BYTES].view(torch.int64).fill_(_MARK)
    cuda_ipc.finish(device)
    return device_memory


def _export(device_memory: torch.Tensor, readers: Sequence[int]) -> tuple[dict[int, cuda_ipc.Handle], dict[str, list[str]]]:
    """Return a handle for each of `readers` where one can be made, and a ticket for each: the handle, or the reason for
    none."""
    handles: dict[int, cuda_ipc.Handle] = {}
    tickets: dict[str, list[str]] = {}
    for rank in readers:
        try:
            handles[rank] = cuda_ipc.export(device_memory)
            tickets[str(rank)] = ["handle", handles[rank].to_text()]
        except RuntimeError as error:
            tickets[str(rank)] = ["refusal", " ".join(str(error).split())]
    return handles, tickets


def _open(ticket: Sequence[str], me: RankPlan) -> torch.Tensor:
    """Return the memory that `ticket` names. Raises `RuntimeError` if this rank cannot access it."""
    kind, text = ticket
    if kind == "refusal":
        raise RuntimeError(text)
    device_memory = cuda_ipc.open_handle(cuda_ipc.Handle.from_text(text), torch.device(me.store_device or "cpu"))
    if int(device_memory[:WORD_BYTES].view(torch.int64)[0]) != _MARK:
        raise RuntimeError(f"{me.store_device} on {me.host} is not the GPU of the store")
    return device_memory


def _fall_back(rank: int, fault: str, handle: cuda_ipc.Handle | None) -> None:
    sys.stderr.write(f"hvd-async: rank {rank}: CUDA IPC is refused, so it goes through the host's memory: {fault}\n")
    sys.stderr.flush()
    if handle is not None:
        cuda_ipc.release(handle)
