"""The block as ordinary memory of one process: for a store thread beside worker threads, and for tests."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Sequence
from typing import Generic

import numpy as np
import numpy.typing as npt
import torch

from hvd_async.transport.block import WORD_BYTES, BlockT
from hvd_async.transport.pulse import NativePulse, Pulse, Rhythm, ThreadPulse
from hvd_async.vectors import arithmetic


class MappedMemory(Generic[BlockT]):
    """Plain loads, stores and copies on a mapped block of bytes.

    CPython writes an aligned int64 of a NumPy array in one instruction; `_fence` orders it with the copies around it.
    """

    name = "memory"
    has_bells = arithmetic.has_doorbells()
    is_remote = False

    def __init__(self, layout: BlockT, block: npt.NDArray[np.uint8]) -> None:
        """Use `block`: [layout.total_bytes], uint8, page-aligned; it must outlive this object."""
        if block.nbytes < layout.total_bytes:
            raise ValueError(f"block: got {block.nbytes} bytes, expected {layout.total_bytes}")
        self.layout = layout
        self._words = block[: layout.total_bytes // WORD_BYTES * WORD_BYTES].view(np.int64)
        self._block = block
        self._bytes = torch.from_numpy(block)
        self._address = int(block.ctypes.data)

    def load(self, word: int) -> int:
        value = int(self._words[word])
        self._fence()
        return value

    def store(self, word: int, value: int) -> None:
        self._fence()
        self._words[word] = value
        self._fence()

    def store_words(self, first: int, values: Sequence[int]) -> None:
        self._words[first : first + len(values)] = values

    def load_words(self, first: int, count: int) -> list[int]:
        values: list[int] = self._words[first : first + count].tolist()
        self._fence()
        return values

    def fetch_add(self, word: int, amount: int) -> int:
        raise NotImplementedError

    def compare_swap(self, word: int, expected: int, value: int) -> int:
        raise NotImplementedError

    def put(self, offset: int, source: torch.Tensor) -> None:
        arithmetic.copy(source, self.vector(offset, source.numel(), source.dtype))

    def flush(self) -> None:
        self._fence()

    def get(self, offset: int, target: torch.Tensor) -> None:
        arithmetic.copy(self.vector(offset, target.numel(), target.dtype), target)
        self._fence()  # the version is read again only after this

    def mapped(self, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor | None:
        return self.vector(offset, count, dtype)

    def beat(self, word: int, rhythm: Rhythm) -> Pulse:
        if arithmetic.has_doorbells():
            return NativePulse(self._address + WORD_BYTES * word, rhythm, self)
        return ThreadPulse(functools.partial(self.store, word), rhythm)

    def vector(self, offset: int, count: int | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        count = self.layout.num_elements if count is None else count
        return self._bytes[offset : offset + dtype.itemsize * count].view(dtype)

    def bring_in(self, offset: int, num_bytes: int) -> None:
        """Do nothing: the memory itself is the block."""

    def bring_out(self, offset: int, num_bytes: int) -> None:
        """Do nothing: the memory itself is the block."""

    def dead_ranks(self) -> frozenset[int]:
        return frozenset()

    def ring(self, bell: int) -> None:
        if self.has_bells:
            arithmetic.ring(self._bell(bell))

    def heard(self, bell: int) -> int:
        return arithmetic.heard(self._bell(bell)) if self.has_bells else 0

    def wait(self, bell: int, heard: int, seconds: float) -> None:
        if self.has_bells:
            arithmetic.wait(self._bell(bell), heard, seconds)
        else:
            time.sleep(seconds)  # nothing can ring

    def _bell(self, bell: int) -> int:
        return self._address + WORD_BYTES * bell

    def _fence(self) -> None:
        """Order what this thread did before the fence and what it does after it, for other threads and processes."""


class ThreadMemory(MappedMemory[BlockT]):
    """A block shared by threads of one process. Every thread may use the same object."""

    name = "threads"

    def __init__(self, layout: BlockT) -> None:
        """Allocate the block, zeroed."""
        spare = np.zeros(layout.total_bytes + 64, dtype=np.uint8)
        start = -spare.ctypes.data % 64
        super().__init__(layout, spare[start : start + layout.total_bytes])
        self._lock = threading.Lock()

    def fetch_add(self, word: int, amount: int) -> int:
        with self._lock:
            before = int(self._words[word])
            self._words[word] = before + amount
            return before

    def compare_swap(self, word: int, expected: int, value: int) -> int:
        with self._lock:
            before = int(self._words[word])
            if before == expected:
                self._words[word] = value
            return before

    def _fence(self) -> None:
        with self._lock:  # acquiring and releasing a lock is a full barrier
            pass
