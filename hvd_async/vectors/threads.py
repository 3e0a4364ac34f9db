"""Number of threads with which torch computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def arithmetic_threads(num_threads: int) -> Iterator[None]:
    """Let torch compute with `num_threads` threads inside the block, then with as many as before."""
    with restored_threads():
        torch.set_num_threads(num_threads)
        yield


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """Restore torch's number of threads when the block ends, whatever is set inside."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
