"""The block as ordinary memory of one process: for a store thread beside worker threads, and for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Generic

import numpy as np
import numpy.typing as npt
import torch

from hvd_async.transport.block import WORD_BYTES, BlockT
from hvd_async.vectors import arithmetic


class MappedMemory(Generic[BlockT]):
    """Plain loads, stores and copies on a mapped block of bytes.

    CPython writes an aligned int64 of a NumPy array in one instruction; `_fence` orders it with the copies around it.
    """

    name = "memory"
    has_bells = arithmetic.has_doorbells()

    def __init__(self, layout: BlockT, block: npt.NDArray[np.uint8]) -> None:
        """`block`: [layout.total_bytes], uint8, page-aligned; it must outlive this object."""
        if block.nbytes < layout.total_bytes:
            raise ValueError(f"block: got {block.nbytes} bytes, expected {layout.total_bytes}")
        self.layout = layout
        self._words = block[: layout.total_bytes // WORD_BYTES * WORD_BYTES].view(np.int64)
        self._block = block
        self._bytes = torch.from_numpy(block)
        self._address = int(block.ctypes.data)

    def load(self, word: int) -> int:
        """See `Window.load`."""
        value = int(self._words[word])
        self._fence()
        return value

    def store(self, word: int, value: int) -> None:
        """See `Window.store`."""
        self._fence()
        self._words[word] = value
        self._fence()

    def store_words(self, first: int, values: Sequence[int]) -> None:
        """See `Window.store_words`."""
        self._words[first : first + len(values)] = values

    def load_words(self, first: int, count: int) -> list[int]:
        """See `Window.load_words`."""
        values: list[int] = self._words[first : first + count].tolist()
        self._fence()
        return values

    def fetch_add(self, word: int, amount: int) -> int:
        """See `Window.fetch_add`."""
        raise NotImplementedError

    def compare_swap(self, word: int, expected: int, value: int) -> int:
        """See `Window.compare_swap`."""
        raise NotImplementedError

    def put(self, offset: int, source: torch.Tensor) -> None:
        """See `Window.put`."""
        arithmetic.copy(source, self.vector(offset, source.numel(), source.dtype))

    def flush(self) -> None:
        """See `Window.flush`."""
        self._fence()

    def get(self, offset: int, target: torch.Tensor) -> None:
        """See `Window.get`."""
        arithmetic.copy(self.vector(offset, target.numel(), target.dtype), target)
        self._fence()  # the version is looked at again only after this

    def mapped(self, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor | None:
        """See `Window.mapped`."""
        return self.vector(offset, count, dtype)

    def vector(self, offset: int, count: int | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """See `OwnerWindow.vector`."""
        count = self.layout.num_elements if count is None else count
        return self._bytes[offset : offset + dtype.itemsize * count].view(dtype)

    def bring_in(self, offset: int, num_bytes: int) -> None:
        """See `OwnerWindow.bring_in`: it is there."""

    def bring_out(self, offset: int, num_bytes: int) -> None:
        """See `OwnerWindow.bring_out`: it is."""

    def ring(self, bell: int) -> None:
        """See `Window.ring`."""
        if self.has_bells:
            arithmetic.ring(self._bell(bell))

    def heard(self, bell: int) -> int:
        """See `Window.heard`."""
        return arithmetic.heard(self._bell(bell)) if self.has_bells else 0

    def wait(self, bell: int, heard: int, seconds: float) -> None:
        """See `Window.wait`."""
        if self.has_bells:
            arithmetic.wait(self._bell(bell), heard, seconds)
        else:
            time.sleep(seconds)  # nobody can ring

    def _bell(self, bell: int) -> int:
        return self._address + WORD_BYTES * bell

    def _fence(self) -> None:
        """Order what this thread did before with what it does after, for other threads and processes."""


class ThreadMemory(MappedMemory[BlockT]):
    """The block shared by threads of one process. Every thread may use the same object."""

    name = "threads"

    def __init__(self, layout: BlockT) -> None:
        """Allocates the block, zeroed."""
        spare = np.zeros(layout.total_bytes + 64, dtype=np.uint8)
        start = -spare.ctypes.data % 64
        super().__init__(layout, spare[start : start + layout.total_bytes])
        self._lock = threading.Lock()

    def fetch_add(self, word: int, amount: int) -> int:
        """See `Window.fetch_add`."""
        with self._lock:
            before = int(self._words[word])
            self._words[word] = before + amount
            return before

    def compare_swap(self, word: int, expected: int, value: int) -> int:
        """See `Window.compare_swap`."""
        with self._lock:
            before = int(self._words[word])
            if before == expected:
                self._words[word] = value
            return before

    def _fence(self) -> None:
        with self._lock:  # taking and leaving a lock is a full barrier
            pass
