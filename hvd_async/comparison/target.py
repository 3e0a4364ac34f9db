"""The quality to which runs are timed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hvd_async.comparison.runs import Point, Run
from hvd_async.errors import ConfigError
from hvd_async.tasks.metric import Metric, check_metric_name


@dataclass(frozen=True)
class Target:
    """A score to be reached: from below if higher scores of the metric are better, else from above.

    `is_given`: chosen before the runs; otherwise derived from them, see `common_target`.
    """

    metric: Metric
    value: float
    is_given: bool = True

    def __str__(self) -> str:
        """Return text such as `loss 2.100` or `BLEU 30.0`."""
        return f"{self.metric.title} {self.metric.text(self.value)}"

    @property
    def cost(self) -> float:
        """The value turned so that it falls: reached by values that are not above it."""
        return self.metric.cost(self.value)

    def cost_of(self, point: Point) -> float | None:
        """Return the value to compare with `cost`; None if it was not measured, or is not finite."""
        score = point.finite(self.metric)
        return None if score is None else self.metric.cost(score)


@dataclass(frozen=True)
class WantedTarget:
    """A target as a user gives it: the name of a metric, of which only the runs tell more, and a value."""

    name: str
    value: float

    def __post_init__(self) -> None:
        """Raise `ValueError` for a name that no metric can have."""
        check_metric_name(self.name)

    def target(self, metrics: Sequence[Metric]) -> Target | None:
        """Return the target. `metrics`: those of the runs; None if there are none.

        Raises `ConfigError` if none of them has the name.
        """
        if not metrics:
            return None
        known = {metric.name: metric for metric in metrics}
        if self.name not in known:
            raise ConfigError(f"target: got {self.name}, which no run has measured, expected one of {', '.join(known)}")
        return Target(known[self.name], self.value)


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
    return Target(baseline[0].loss_metric, max([own, min(rest)] if rest else [own]), is_given=False)
