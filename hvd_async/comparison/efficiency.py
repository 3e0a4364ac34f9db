"""Tokens to the same loss: how many a baseline needs for each that another run needs, with an interval over seeds. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hvd_async.comparison.runs import RunResult

# Quantiles of Student's t for a two-sided interval of 95 %, by degrees of freedom; from there on the normal's.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_NORMAL95 = 1.960


@dataclass(frozen=True)
class Interval:
    """A mean of `num` measurements with a 95 % interval; both ends are the mean where there is one measurement alone."""

    mean: float
    low: float
    high: float
    num: int

    def __str__(self) -> str:
        """As `0.97 (0.94 to 1.01)`; without an interval where there is none."""
        return f"{self.mean:.3f}" + (f" ({self.low:.3f} to {self.high:.3f})" if self.num > 1 else "")


def tokens_to(run: RunResult, loss: float) -> float | None:
    """Target tokens until the validation loss of `run` is `loss` or lower, linearly between its points; None if it never is."""
    points = sorted(run.finite_points, key=lambda point: point.tokens)
    for number, point in enumerate(points):
        if point.loss > loss:
            continue
        if number == 0:
            return float(point.tokens)
        before = points[number - 1]
        return before.tokens + (before.loss - loss) / (before.loss - point.loss) * (point.tokens - before.tokens)
    return None


def token_efficiency(baseline: RunResult, run: RunResult) -> float:
    """Tokens of `baseline` / tokens of `run`, to the lowest loss that both reached: 1 where a token is worth as much."""
    loss = max(min(point.loss for point in each.finite_points) for each in (baseline, run))
    needed, others = tokens_to(baseline, loss), tokens_to(run, loss)
    assert needed is not None and others is not None  # both reached it
    return needed / others


def interval(ratios: Sequence[float]) -> Interval:
    """Mean and 95 % interval of positive `ratios`, one for each seed: Student's t of their logarithms, so that a ratio and its
    inverse are treated alike."""
    logarithms = [math.log(ratio) for ratio in ratios]
    mean, num = statistics.fmean(logarithms), len(ratios)
    if num == 1:
        return Interval(math.exp(mean), math.exp(mean), math.exp(mean), 1)
    quantile = _T95[num - 2] if num - 2 < len(_T95) else _NORMAL95
    half = quantile * statistics.stdev(logarithms) / math.sqrt(num)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half), num)
