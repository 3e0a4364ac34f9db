"""A store's block whose vectors lie on a GPU: what is in which memory, and how the ranks of a run reach it.

Published parameters and slots are on the GPU, laid out as in the block of the host, which stays: it
holds the control words, and the slots and copies of those who cannot reach the GPU's memory. For these the store copies: a slot
to the GPU when it takes it in, a new version to the host before it says that it is out.

The order of writes is the protocol's, but device work goes on after the call that began it. So everything here, and everything
in `kernels`, waits for its stream before it returns: the word that announces a copy is written after the copy is complete, and
the word that gives memory free after the last read of it.
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
from hvd_async.vectors import arithmetic

# The owner writes it at the beginning of the block before anything else; whoever opens the block must find it there.
_MARK = 0x6876645F6173796E


class DeviceWindow:
    """A window whose slots and published parameters are on a GPU, in `device_memory`. Implements `Window`.

    ShardOps that are moved may be on any device. The memory is the window's until `close`.
    """

    name = "CUDA IPC"

    def __init__(self, host: StoreWindow, device_memory: torch.Tensor) -> None:
        """`host` reaches the block of the host; `device_memory`: [device_bytes(layout)] uint8."""
        self.layout: Layout = host.layout
        self.has_bells = host.has_bells
        self._host = host
        self._start = host.layout.published_offset(0)
        self._device_memory: torch.Tensor | None = device_memory

    def load(self, word: int) -> int:
        """See `Window.load`."""
        return self._host.load(word)

    def store(self, word: int, value: int) -> None:
        """See `Window.store`."""
        self._host.store(word, value)

    def store_words(self, first: int, values: Sequence[int]) -> None:
        """See `Window.store_words`."""
        self._host.store_words(first, values)

    def load_words(self, first: int, count: int) -> list[int]:
        """See `Window.load_words`."""
        return self._host.load_words(first, count)

    def fetch_add(self, word: int, amount: int) -> int:
        """See `Window.fetch_add`."""
        return self._host.fetch_add(word, amount)

    def compare_swap(self, word: int, expected: int, value: int) -> int:
        """See `Window.compare_swap`."""
        return self._host.compare_swap(word, expected, value)

    def put(self, offset: int, source: torch.Tensor) -> None:
        """See `Window.put`."""
        if offset < self._start:
            self._host.put(offset, source)
        else:
            arithmetic.copy(source, self._on_device(offset, source.numel(), source.dtype))

    def flush(self) -> None:
        """See `Window.flush`."""
        self._host.flush()

    def get(self, offset: int, target: torch.Tensor) -> None:
        """See `Window.get`."""
        if offset < self._start:
            self._host.get(offset, target)
        else:
            # Waits: the client looks at NEXT_VERSION next, which tells only about bytes that were read before.
            arithmetic.copy(self._on_device(offset, target.numel(), target.dtype), target)

    def mapped(self, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor | None:
        """See `Window.mapped`: memory of the GPU, to be written with functions of `kernels`, which wait."""
        if offset < self._start:
            return self._host.mapped(offset, count, dtype)
        return self._on_device(offset, count, dtype)

    def ring(self, bell: int) -> None:
        """See `Window.ring`."""
        self._host.ring(bell)

    def heard(self, bell: int) -> int:
        """See `Window.heard`."""
        return self._host.heard(bell)

    def wait(self, bell: int, heard: int, seconds: float) -> None:
        """See `Window.wait`."""
        self._host.wait(bell, heard, seconds)

    def close(self) -> None:
        """Let go of the memory, of which nobody may hold views any more."""
        self._device_memory = None

    def _on_device(self, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        assert self._device_memory is not None, "closed"
        begin = offset - self._start
        return self._device_memory[begin : begin + dtype.itemsize * count].view(dtype)


class DeviceMemory(DeviceWindow):
    """The block as its owner sees it. Implements `StoreMemory`.

    Attributes:
        host_slots: those that are written in the host's memory, by workers that read published parameters there.
    """

    name = "device memory"

    def __init__(self, host: StoreMemory, device_memory: torch.Tensor, host_slots: Collection[int]) -> None:
        """As `DeviceWindow`."""
        super().__init__(host, device_memory)
        self._host_memory = host
        self.host_slots = frozenset(host_slots)
        self._host_offsets = {self.layout.slot_offset(slot) for slot in host_slots}

    def vector(self, offset: int, count: int | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """See `OwnerWindow.vector`."""
        count = self.layout.num_elements if count is None else count
        if offset < self._start:
            return self._host_memory.vector(offset, count, dtype)
        return self._on_device(offset, count, dtype)

    def bring_in(self, offset: int, num_bytes: int) -> None:
        """See `OwnerWindow.bring_in`. What was copied from the host's memory may be written again on return."""
        if offset in self._host_offsets:
            self._copy(offset, num_bytes, to_device=True)

    def bring_out(self, offset: int, num_bytes: int) -> None:
        """See `OwnerWindow.bring_out`. The host's copy is covered by the same announcement as the GPU's: NEXT_VERSION, or
        NEXT_PROVISIONAL."""
        if self.host_slots:
            self._copy(offset, num_bytes, to_device=False)

    def _copy(self, offset: int, num_bytes: int, *, to_device: bool) -> None:
        here = self._host_memory.vector(offset, num_bytes, torch.uint8)
        there = self._on_device(offset, num_bytes, torch.uint8)
        arithmetic.copy(*((here, there) if to_device else (there, here)))


@dataclass(frozen=True)
class Reach:
    """The block of shard 0 as one rank uses it: `store` its shard, on the owner alone; `worker` its worker."""

    worker: StoreWindow
    store: StoreMemory | None = None

    @property
    def is_direct(self) -> bool:
        """Whether the worker's vectors may stay on its GPU."""
        return isinstance(self.worker, DeviceWindow)


def device_bytes(layout: Layout) -> int:
    """Device memory for published parameters and slots."""
    return layout.slot_offset(layout.slots) - layout.published_offset(0)


@contextlib.contextmanager
def open_device_block(
    group: Group, plans: Sequence[RankPlan], host: StoreWindow, slot_of_rank: Mapping[int, int]
) -> Iterator[Reach]:
    """The block of a store whose `store_device` is a GPU, as this rank reaches it.

    Collective over `group`, on entry and on an orderly exit, which must come before `host` is closed; an exit by an exception
    gives nothing back, since the job is then to be aborted. `host` is this rank's window on the block of shard 0, on the owner a
    `StoreMemory`; `slot_of_rank` names the slots of ranks that train. A rank that was to open the memory and cannot falls back
    to the host's, and says why. Raises `SetupError` on the owner where the GPU has too little memory.
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
    group.allgather("")  # everyone has closed it
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
    """A handle for each of `readers`, as far as they can be made; and for each what it is told: the handle, or why not."""
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
    """The memory that `ticket` names. Raises `RuntimeError` where it cannot be reached."""
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
