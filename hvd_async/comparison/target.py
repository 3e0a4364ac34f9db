"""The quality to which runs are timed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hvd_async.comparison.runs import Point, Run


@dataclass(frozen=True)
class Target:
    """A validation loss in nats per token, to be reached from above, or a BLEU score, from below.

    `is_given`: chosen before the runs; otherwise derived from them, see `common_target`.
    """

    measure: Literal["loss", "bleu"]
    value: float
    is_given: bool = True

    def __str__(self) -> str:
        """Return text such as `loss 2.100` or `BLEU 30.0`."""
        return f"loss {self.value:.3f}" if self.measure == "loss" else f"BLEU {self.value:.1f}"

    @property
    def cost(self) -> float:
        """The value turned so that it falls: reached by values that are not above it."""
        return self.value if self.measure == "loss" else -self.value

    def cost_of(self, point: Point) -> float | None:
        """Return the value to compare with `cost`; None if it was not measured."""
        if self.measure == "loss":
            return point.loss
        return None if point.bleu is None else -point.bleu


def common_target(baseline: Sequence[Run], others: Sequence[Sequence[Run]]) -> Target | None:
    """Return the lowest loss reached by all runs of the baseline and by all runs of at least one of `others` (each the
    runs of one variant).

    So the baseline and the best of the others have a time to it. None if there is no finite loss.
    """

    def worst(runs: Sequence[Run]) -> float | None:
        best = [min((point.loss for point in run.finite_points), default=None) for run in runs]
        found = [loss for loss in best if loss is not None]
        return max(found) if found and len(found) == len(best) else None

    own = worst(baseline)
    rest = [loss for runs in others if (loss := worst(runs)) is not None]
    if own is None:
        return None
    return Target("loss", max([own, min(rest)] if rest else [own]), is_given=False)
