"""History of evaluations: the best version, and the progress since."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hvd_async.tasks.metric import LOSS, Metric


@dataclass(frozen=True)
class EvaluationResult:
    """Evaluation of one version, with the weight of all batches and the seconds of training when the version was made."""

    version: int
    weight: float
    seconds: float
    scores: Mapping[str, float]

    @property
    def loss(self) -> float:
        """The validation loss."""
        return self.scores[LOSS]


class EvaluationHistory:
    """The evaluations of a run, in the order in which they were reported."""

    def __init__(self, metric: Metric) -> None:
        """Start without evaluations. `metric`: the score that tells which version is better."""
        self.metric = metric
        self._all: list[EvaluationResult] = []

    def restore(self, data: Iterable[dict[str, Any]]) -> None:
        """Restore the result of `to_json` of an earlier process."""
        self._all = [EvaluationResult(**fields) for fields in data]

    def add(self, result: EvaluationResult) -> None:
        """Add an evaluation."""
        self._all.append(result)

    @property
    def versions(self) -> set[int]:
        """Versions that were evaluated."""
        return {result.version for result in self._all}

    @property
    def best(self) -> EvaluationResult | None:
        """Evaluation with the best score, the earliest of several; None if no evaluation gave a finite score."""
        finite = [result for result in self._all if math.isfinite(result.scores.get(self.metric.name, math.nan))]
        return min(finite, key=lambda result: self.metric.cost(result.scores[self.metric.name]), default=None)

    @property
    def last(self) -> EvaluationResult | None:
        """Evaluation of the highest version."""
        return max(self._all, key=lambda result: result.version, default=None)

    def num_without_progress(self) -> int:
        """Return the number of evaluations of versions after the best one; of all versions, if there is no best one.

        An evaluation that did not measure the score does not count.
        """
        best = self.best
        measured = [result for result in self._all if self.metric.name in result.scores]
        return sum(best is None or result.version > best.version for result in measured)

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain data for a summary or a checkpoint."""
        return [asdict(result) for result in self._all]
