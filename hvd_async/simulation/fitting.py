"""Fits of step times and of push and pull times by a few numbers. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
_ROUNDS = 5
# Deviations below this are noise of the clock.
_LEAST_DEVIATION = 1e-4


@dataclass(frozen=True)
class StepFit:
    """Model of a step's seconds: factor * (seconds + seconds_per_weight * weight) * a log-normal of mean 1 and
    `deviation`."""

    seconds: float
    seconds_per_weight: float
    deviation: float
    factors: Mapping[int, float]

    def to_config(self) -> dict[str, Any]:
        """Return the fit as the section `emulation`."""
        is_spread = self.deviation >= _LEAST_DEVIATION
        return {
            "slow_workers": {worker: factor for worker, factor in self.factors.items() if factor > 1.0},
            "seconds": self.seconds,
            "seconds_per_weight": self.seconds_per_weight,
            "seconds_per_micro_batch": 0.0,  # is in `seconds` of a run with micro-batches
            "spread": "log_normal" if is_spread else "none",
            "deviation": self.deviation if is_spread else 0.0,
        }


def fit_steps(steps: Mapping[int, Sequence[tuple[float, float]]]) -> StepFit:
    """Fit the step times. `steps`: weight and seconds of each worker's steps. The fastest worker has factor 1."""
    weights = {worker: np.array([one for one, _ in pairs], dtype=np.float64) for worker, pairs in steps.items()}
    seconds = {worker: np.array([one for _, one in pairs], dtype=np.float64) for worker, pairs in steps.items()}
    factors = dict.fromkeys(steps, 1.0)
    base, slope = 0.0, 0.0
    for _ in range(_ROUNDS):
        all_weights = np.concatenate([weights[worker] for worker in steps])
        base, slope = _line(all_weights, np.concatenate([seconds[worker] / factors[worker] for worker in steps]))
        for worker in steps:
            factors[worker] = float(seconds[worker].sum() / (base + slope * weights[worker]).sum())
    fastest = min(factors.values())
    factors = {worker: factor / fastest for worker, factor in factors.items()}
    base, slope = base * fastest, slope * fastest
    residuals = np.concatenate([seconds[worker] / (factors[worker] * (base + slope * weights[worker])) for worker in steps])
    # From quantiles around the middle, so that single steps in which the machine stalled have no effect.
    below, above = np.quantile(np.log(np.maximum(residuals, 1e-12)), (0.1587, 0.8413))
    deviation = float(above - below) / 2
    return StepFit(base, slope, deviation, factors)


def low(values: Sequence[float], share: float = 0.25) -> float:
    """Return the value above a `share` of the values: the time without interference. 0 for no values."""
    return sorted(values)[int(share * len(values))] if values else 0.0


def mean(values: Sequence[float]) -> float:
    """Return the mean, or 0 for no values."""
    return math.fsum(values) / len(values) if values else 0.0


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Return intercept and slope of the least-squares line, with neither of them negative."""
    spread = float(x.var())
    slope = 0.0 if spread == 0.0 else max(0.0, float(((x - x.mean()) * (y - y.mean())).mean()) / spread)
    base = float(y.mean() - slope * x.mean())
    if base <= 0.0:
        base = 1e-9
        slope = float(y.mean() / x.mean())
    return base, slope
