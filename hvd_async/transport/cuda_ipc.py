"""Memory of a GPU shared by several processes of a host: passed as text, by CUDA's handles as torch makes them.

Users of this module keep CUDA's rules: a handle is opened in another process than the one that made it; the memory stays
allocated until every process that opened it has closed it; nothing here orders what the processes do with it, so whoever
announces data waits for its own stream first. If a handle cannot be made or opened (another container, MIG, an allocator
without handles), torch raises `RuntimeError`, and clears CUDA's error.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

_cuda: Any = torch.cuda  # parts of it are untyped


@dataclass(frozen=True)
class Handle:
    """Access of one process to a block of device memory; the names are those of `torch.multiprocessing.reductions`.

    `memory` names the whole allocation, in which the block begins at `offset`. `counter` and `counter_offset` name a
    count in the host's shared memory: 1 until the process that opened this handle has closed it. `event`: if `waits`, the
    opener's stream waits for this event, which follows all work that the owner had given to its stream when it made the
    handle.
    """

    memory: bytes
    num_bytes: int
    offset: int
    counter: bytes
    counter_offset: int
    event: bytes
    waits: bool

    def to_text(self) -> str:
        """Return one line of text to send to another rank; bytes as hexadecimal digits."""
        fields = [self.memory.hex(), self.num_bytes, self.offset, self.counter.hex(), self.counter_offset, self.event.hex()]
        return json.dumps([*fields, self.waits])

    @classmethod
    def from_text(cls, text: str) -> Handle:
        """Return the handle in `text`; the inverse of `to_text`."""
        memory, num_bytes, offset, counter, counter_offset, event, waits = json.loads(text)
        return cls(
            bytes.fromhex(memory), num_bytes, offset, bytes.fromhex(counter), counter_offset, bytes.fromhex(event), waits
        )


def export(block: torch.Tensor) -> Handle:
    """Return a handle for one other process; every process needs its own, since each handle has its own count.

    `block`: [num_bytes] uint8, the whole of its storage, on a GPU. It must stay referenced until the other process has
    closed the handle, or `release` has been called for the handle. Raises `RuntimeError` if CUDA or torch's allocator
    cannot make one.
    """
    storage: Any = block.untyped_storage()
    _, memory, num_bytes, offset, counter, counter_offset, event, waits = storage._share_cuda_()
    return Handle(memory, num_bytes, offset, counter, counter_offset, event, waits)


def open_handle(handle: Handle, device: torch.device) -> torch.Tensor:
    """Return the block: [num_bytes] uint8, the owner's own memory. It is closed when nothing refers to it any more.

    `device`: the GPU of the block, as this process numbers it. This process gets a context there, if it has none. Raises
    `RuntimeError` if CUDA refuses.
    """
    with torch.cuda.device(device):  # the context of the current device opens a handle
        storage: Any = torch.UntypedStorage._new_shared_cuda(
            torch.cuda.current_device(),
            handle.memory,
            handle.num_bytes,
            handle.offset,
            handle.counter,
            handle.counter_offset,
            handle.event,
            handle.waits,
        )
        block = torch.empty(0, dtype=torch.uint8, device=device)
        return block.set_(storage, 0, (handle.num_bytes,), (1,))


def release(handle: Handle) -> None:
    """Count down for a process that could not open `handle`. The owner calls this; otherwise its memory would wait for
    that process."""
    storage: Any = torch.UntypedStorage
    storage._release_ipc_counter_cuda(handle.counter, handle.counter_offset)


@contextlib.contextmanager
def locked(memory: torch.Tensor, device: torch.device) -> Iterator[bool]:
    """Lock the pages of `memory` (contiguous, CPU) inside the block, so that copies to and from a GPU run at full speed;
    yield whether this worked. If the system refuses (a limit on locked memory), copies work all the same, but slower.

    The memory must not be freed inside the block. After an exception it stays locked: the process is about to end, and
    CUDA may be what failed.
    """
    address, num_bytes = memory.data_ptr(), memory.numel() * memory.element_size()
    with torch.cuda.device(device):
        runtime = _cuda.cudart()
        is_locked = int(runtime.cudaHostRegister(address, num_bytes, 0)) == 0
        if not is_locked:
            # The refusal remains as CUDA's last error, which the next launch would report as its own: let a harmless
            # launch do so.
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device=device)
    yield is_locked
    if is_locked:
        with torch.cuda.device(device):
            torch.cuda.synchronize(device)  # no copy may be under way
            torch.cuda.check_error(runtime.cudaHostUnregister(address))


def use_own_stream(device: torch.device | str) -> None:
    """Let the calling thread work on `device`, with a stream of its own, from now on. Does nothing if `device` is not a
    GPU.

    A new thread would otherwise start on the first GPU, where it would create a context, and on the default stream, where
    it would wait for the computation of all other threads. Data passed to the thread must be complete: streams do not
    wait for each other by themselves.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(_cuda.Stream(device))


def finish(device: torch.device | str) -> None:
    """Wait for all work that this process has given to `device`; return at once if that is not a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
