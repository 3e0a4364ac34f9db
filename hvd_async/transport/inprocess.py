"""The block as ordinary memory of one process: for a store thread beside worker threads, and for tests."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import torch

from hvd_async.transport.layout import WORD_BYTES, Layout


class MappedMemory:
    """Plain loads, stores and copies on a mapped block of bytes.

    CPython writes an aligned int64 of a NumPy array in one instruction; `_fence` orders it with the copies around it.
    """

    name = "memory"

    def __init__(self, layout: Layout, block: npt.NDArray[np.uint8]) -> None:
        """`block`: [layout.total_bytes], uint8, page-aligned; it must outlive this object."""
        if block.nbytes < layout.total_bytes:
            raise ValueError(f"block: got {block.nbytes} bytes, expected {layout.total_bytes}")
        self.layout = layout
        self._words = block[: WORD_BYTES * layout.num_words].view(np.int64)
        self._block = block
        self._bytes = torch.from_numpy(block)

    def load(self, word: int) -> int:
        """See `Window.load`."""
        self._fence()
        return int(self._words[word])

    def store(self, word: int, value: int) -> None:
        """See `Window.store`."""
        self._fence()
        self._words[word] = value
        self._fence()

    def fetch_add(self, word: int, amount: int) -> int:
        """See `Window.fetch_add`."""
        raise NotImplementedError

    def put(self, offset: int, source: torch.Tensor) -> None:
        """See `Window.put`."""
        self._floats(offset, source.numel()).copy_(source)

    def get(self, offset: int, target: torch.Tensor) -> None:
        """See `Window.get`."""
        target.copy_(self._floats(offset, target.numel()))

    def vector(self, offset: int) -> torch.Tensor:
        """See `StoreMemory.vector`."""
        return self._floats(offset, self.layout.num_elements)

    def _floats(self, offset: int, count: int) -> torch.Tensor:
        return self._bytes[offset : offset + 4 * count].view(torch.float32)

    def _fence(self) -> None:
        """Order what this thread did before with what it does after, for other threads and processes."""


class ThreadMemory(MappedMemory):
    """The block shared by threads of one process. Every thread may use the same object."""

    name = "threads"

    def __init__(self, layout: Layout) -> None:
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

    def _fence(self) -> None:
        with self._lock:  # taking and leaving a lock is a full barrier
            pass
