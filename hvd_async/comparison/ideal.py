"""The best speed of workers if exchanging gradients cost nothing, from the lengths of their steps. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ideal:
    """Steps per second of all workers together. `synchronous`: each step is as long as the slowest worker's, W / E[max of
    W steps]. `asynchronous`: no worker waits, the sum of the workers' own rates."""

    synchronous: float
    asynchronous: float

    @property
    def speed_up(self) -> float:
        """Upper limit of the speed-up by not waiting."""
        return self.asynchronous / self.synchronous


def ideal(step_seconds: Mapping[int, Sequence[float]]) -> Ideal | None:
    """Return the ideal for the lengths of each worker's steps, taken as independent. None if a worker has no steps, or if
    steps take no time."""
    if not step_seconds or not all(len(steps) and sum(steps) for steps in step_seconds.values()):
        return None
    rates = sum(len(steps) / sum(steps) for steps in step_seconds.values())
    return Ideal(len(step_seconds) / expected_maximum(list(step_seconds.values())), rates)


def expected_maximum(samples: Sequence[Sequence[float]]) -> float:
    """Return E[max] of independent draws, one from each of `samples` (not negative): the integral of 1 - the product of
    their distribution functions, which are step functions."""
    each = [np.sort(np.asarray(sample, dtype=np.float64)) for sample in samples]
    times = np.unique(np.concatenate(each))
    below = np.ones(len(times))
    for sample in each:
        below *= np.searchsorted(sample, times, side="right") / len(sample)
    widths = np.diff(times)
    return float(times[0] + np.sum(widths * (1.0 - below[:-1])))
