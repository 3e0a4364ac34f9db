"""The global random numbers of torch, NumPy and Python, which all threads of a process share.

A model in training mode draws from them (dropout), and so does random augmentation. A run repeats its bits because they are
seeded for each batch; a background thread that also draws, such as one that exports a model, would break that. So whoever
seeds draws inside one of these blocks, and one thread at a time is in them.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator

import numpy as np
import torch

_lock = threading.RLock()


def seed_of_batch(seed: int, batch: int) -> int:
    """Return the seed of `batch` of a run with `seed`."""
    return hash((seed, batch)) & 0x7FFFFFFFFFFFFFFF


def seed_batch(seed: int, batch: int) -> None:
    """Seed all global generators for `batch` of a run with `seed`."""
    value = seed_of_batch(seed, batch)
    torch.manual_seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    random.seed(value)


@contextlib.contextmanager
def numbers_of_batch(seed: int, batch: int) -> Iterator[None]:
    """Draw the numbers of `batch` inside the block; a context manager. Blocks while another thread is in such a block."""
    with _lock:
        seed_batch(seed, batch)
        yield


@contextlib.contextmanager
def numbers_apart(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Draw numbers of `seed` inside the block, for work on `device`, and go on afterwards as if nothing had been drawn; a
    context manager. Blocks while another thread is in such a block."""
    device = torch.device(device)
    with _lock, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        of_numpy, of_python = np.random.get_state(), random.getstate()
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)
