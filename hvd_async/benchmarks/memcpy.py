"""The speed of memory: plain copies, with as many threads as the competitor uses."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

_PAGE_BYTES = 4096


@contextlib.contextmanager
def memcpy_with(num_threads: int) -> Iterator[Callable[[torch.Tensor, torch.Tensor], None]]:
    """Yield `copy(source, target)`: the C library's memmove between contiguous tensors of equal size, whole pages per
    thread.

    `ctypes` releases the interpreter lock while it copies. The threads end with the block.
    """
    with ThreadPoolExecutor(max_workers=max(1, num_threads - 1)) as pool:

        def copy(source: torch.Tensor, target: torch.Tensor) -> None:
            num_bytes = source.numel() * source.element_size()
            assert num_bytes == target.numel() * target.element_size()
            begin, to = source.data_ptr(), target.data_ptr()
            others = []
            parts = split(num_bytes, num_threads)
            for start, size in parts[1:]:
                others.append(pool.submit(ctypes.memmove, to + start, begin + start, size))
            ctypes.memmove(to + parts[0][0], begin + parts[0][0], parts[0][1])
            for other in others:
                other.result()

        yield copy


def page_aligned(num: int) -> torch.Tensor:
    """Return a tensor of zeros, [num] float32, in touched memory that begins at a page.

    A memmove of a large block is up to four times slower if the target's offset in its page is 64 bytes above the source's,
    as it is between torch's own large tensors and a mapped block. Such a copy would be no limit.
    """
    spare = torch.zeros(4 * num + _PAGE_BYTES, dtype=torch.uint8)
    start = -spare.data_ptr() % _PAGE_BYTES
    return spare[start : start + 4 * num].view(torch.float32).fill_(0.0)


def split(num_bytes: int, num_parts: int) -> list[tuple[int, int]]:
    """Return start and size in bytes of at most `num_parts` about equal parts of whole pages; the last takes the rest."""
    pages = -(-num_bytes // _PAGE_BYTES)
    size = max(1, -(-pages // num_parts)) * _PAGE_BYTES
    return [(start, min(size, num_bytes - start)) for start in range(0, num_bytes, size)] or [(0, 0)]
