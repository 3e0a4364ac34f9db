"""Memory that processes of one host share without a name in a file system, so that none is left behind when they die."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hvd_async.errors import SetupError
from hvd_async.system.process_state import scope_of_ids, state_of
from hvd_async.transport.block import WORD_BYTES, BlockT
from hvd_async.transport.inprocess import MappedMemory
from hvd_async.vectors import arithmetic


@dataclass(frozen=True)
class Place:
    """Where the memory is: `descriptor` of `process`, whose id has a meaning in `scope` (see `scope_of_ids`). `token`: a random
    number, by which the memory is known from that of a later process with the same id."""

    process: int
    scope: int
    descriptor: int
    num_bytes: int
    token: int

    @property
    def name(self) -> str:
        """Name under which the kernel shows the memory."""
        return f"hvd-async-{self.token:x}"

    @property
    def is_here(self) -> bool:
        """Whether the owner's process can be seen from this one."""
        return self.scope != 0 and self.scope == scope_of_ids()


def is_available() -> bool:
    """Whether this machine has such memory, and the operations on it that need no MPI."""
    return hasattr(os, "memfd_create") and arithmetic.has_doorbells() and scope_of_ids() != 0


def make(num_bytes: int) -> Place:
    """Make zeroed memory of `num_bytes` and return where it is. It lives as long as the descriptor is open or anybody maps it."""
    token = secrets.randbits(62)
    descriptor = os.memfd_create(f"hvd-async-{token:x}")
    os.ftruncate(descriptor, num_bytes)
    return Place(os.getpid(), scope_of_ids(), descriptor, num_bytes, token)


def map_place(place: Place) -> memoryview:
    """Map the memory at `place`, which is on this host. Raises `SetupError` if its owner has gone, or belongs to another user."""
    try:
        if place.process == os.getpid():
            return memoryview(mmap.mmap(place.descriptor, place.num_bytes))
        path = f"/proc/{place.process}/fd/{place.descriptor}"
        if not os.readlink(path).startswith(f"/memfd:{place.name} "):
            raise ValueError("it is another file: the process is a later one")
        with _opened(path) as descriptor:
            return memoryview(mmap.mmap(descriptor, place.num_bytes))
    except (OSError, ValueError) as error:
        gone = "" if state_of(place.process) else ", which has ended"
        raise SetupError(f"the memory of process {place.process}{gone}: cannot be opened: {error}") from None


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class HostMemory(MappedMemory[BlockT]):
    """A block in such memory, for every process of its host."""

    name = "shared memory"

    def __init__(self, layout: BlockT, memory: memoryview) -> None:
        """Use `memory`, which `map_place` returned."""
        super().__init__(layout, np.frombuffer(memory, dtype=np.uint8))

    def fetch_add(self, word: int, amount: int) -> int:
        return arithmetic.fetch_add(self._address + WORD_BYTES * word, amount)

    def compare_swap(self, word: int, expected: int, value: int) -> int:
        return arithmetic.compare_swap(self._address + WORD_BYTES * word, expected, value)

    def _fence(self) -> None:
        arithmetic.fence()
