"""A block in memory that the processes of one host share without MPI."""

from __future__ import annotations

import os

import numpy as np

from hvd_async.system.process_state import scope_of_ids
from hvd_async.transport.block import WORD_BYTES, BlockT
from hvd_async.transport.inprocess import MappedMemory
from hvd_async.vectors import arithmetic


def is_available() -> bool:
    """Whether this machine has such memory, and the operations on it that need no MPI."""
    return hasattr(os, "memfd_create") and arithmetic.has_doorbells() and scope_of_ids() != 0


class HostMemory(MappedMemory[BlockT]):
    """A block in such memory, for every process of its host."""

    name = "shared memory"

    def __init__(self, layout: BlockT, memory: memoryview) -> None:
        """Use `memory`, which `shared_memory.map_place` returned."""
        super().__init__(layout, np.frombuffer(memory, dtype=np.uint8))

    def fetch_add(self, word: int, amount: int) -> int:
        return arithmetic.fetch_add(self._address + WORD_BYTES * word, amount)

    def compare_swap(self, word: int, expected: int, value: int) -> int:
        return arithmetic.compare_swap(self._address + WORD_BYTES * word, expected, value)

    def _fence(self) -> None:
        arithmetic.fence()
