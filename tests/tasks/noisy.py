"""A dataset with random augmentation, for processes that read it."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from hvd_async.tasks.reading import WHOLE, BatchReader, Reading


class Noisy:
    """Examples that draw from each of the global generators; example `trouble` raises, `death` ends the process."""

    def __init__(self, trouble: int = -1, death: int = -1) -> None:
        """Remember what is to happen."""
        self.trouble = trouble
        self.death = death

    def __len__(self) -> int:
        """Return the number of examples."""
        return 24

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return the number of the example with noise, the process, and the worker's number."""
        if index == self.trouble:
            raise KeyError("no such example")
        if index == self.death:
            os._exit(3)
        info = torch.utils.data.get_worker_info()
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        return torch.tensor([index + noise, os.getpid(), -1 if info is None else info.id], dtype=torch.float64)


def noisy_reader(num_workers: int, trouble: int = -1, death: int = -1, timeout: float | None = None) -> BatchReader:
    """Return a reader of `Noisy`."""
    return BatchReader(Reading(Noisy(trouble, death), torch.stack, True, seed=3), num_workers, timeout=timeout)


if __name__ == "__main__":  # a rank that dies while processes read for it
    reader = noisy_reader(2)
    reader.expect((number, [number], WHOLE) for number in range(8))
    processes = {int(reader.read(number, [number])[0, 1]) for number in range(8)}
    print(*processes, flush=True)
    os.kill(os.getpid(), 9)
