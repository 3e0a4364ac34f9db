"""What validation gave over a run: which version is the best, and whether it is worth going on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class EvaluationResult:
    """An evaluation of one version, with how far training was when that version was made."""

    version: int
    tokens: int
    seconds: float
    loss: float
    bleu: float | None


class EvaluationHistory:
    """The measurements of a run, in the order in which they came in."""

    def __init__(self, given: Iterable[EvaluationResult] = ()) -> None:
        """`given`: those of earlier processes."""
        self._all = list(given)

    def restore(self, data: Iterable[dict[str, Any]]) -> None:
        """Continue from what `to_json` gave an earlier process."""
        self._all = [EvaluationResult(**fields) for fields in data]

    def add(self, measurement: EvaluationResult) -> None:
        """Take in one more."""
        self._all.append(measurement)

    @property
    def versions(self) -> set[int]:
        """The versions that were measured."""
        return {measurement.version for measurement in self._all}

    @property
    def best(self) -> EvaluationResult | None:
        """The measurement with the lowest loss, the earliest of several; None where none has a finite one."""
        finite = [measurement for measurement in self._all if math.isfinite(measurement.loss)]
        return min(finite, key=lambda measurement: measurement.loss, default=None)

    @property
    def last(self) -> EvaluationResult | None:
        """The measurement of the highest version."""
        return max(self._all, key=lambda measurement: measurement.version, default=None)

    def num_without_progress(self) -> int:
        """EvaluationHistory of versions after the best one; all, where no loss is finite."""
        best = self.best
        return sum(best is None or measurement.version > best.version for measurement in self._all)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data for a summary or a checkpoint."""
        return [asdict(measurement) for measurement in self._all]
