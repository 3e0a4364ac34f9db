"""Metrics: the scores of an evaluation, and how people read them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hvd_async.errors import ConfigError
from hvd_async.system.printable import printable, shortened

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_MOST_DIGITS = 9
LOSS = "loss"


class MetricError(ConfigError, ValueError):
    """A metric that cannot be. Also a `ValueError`, for those who read metrics from files."""


@dataclass(frozen=True)
class Metric:
    """A score that evaluations of a task give."""

    name: str
    """Key in logs, summaries and targets: lower-case letters, digits and `_`."""
    title: str
    """The name that people read, such as `BLEU`."""
    unit: str = ""
    """The unit of the score, such as `%`; empty for a plain number."""
    digits: int = 3
    """Decimals in tables; lines of progress show one more."""
    is_higher_better: bool = False
    """Whether the higher of two scores is the better one."""
    note: str = ""
    """Half a sentence on how the score is measured, for the definitions in a report."""

    def __post_init__(self) -> None:
        """Raise `MetricError` for an invalid name or number of digits, or a field of another type."""
        check_metric_name(self.name)
        for field in ("title", "unit", "note"):
            if not isinstance(getattr(self, field), str):
                raise MetricError(f"metric {self.name}: {field}: got {shortened(getattr(self, field))}, expected text")
        if not isinstance(self.is_higher_better, bool):
            raise MetricError(
                f"metric {self.name}: is_higher_better: got {shortened(self.is_higher_better)}, expected a bool"
            )
        if not isinstance(self.digits, int) or not 0 <= self.digits <= _MOST_DIGITS:
            raise MetricError(f"metric {self.name}: got {shortened(self.digits)} digits, expected 0 to {_MOST_DIGITS}")

    @property
    def equal_within(self) -> float:
        """Largest difference that a report calls equal: ten times the last decimal."""
        return float(10.0 ** (1 - self.digits))

    @property
    def better(self) -> str:
        """The direction of better scores: `higher` or `lower`."""
        return "higher" if self.is_higher_better else "lower"

    @property
    def best(self) -> str:
        """The adjective of the best score: `highest` or `lowest`."""
        return "highest" if self.is_higher_better else "lowest"

    @property
    def title_and_unit(self) -> str:
        """Text such as `loss in nats per token`."""
        return f"{self.title} in {self.unit}" if self.unit else self.title

    def cost(self, value: float) -> float:
        """Return `value`, negated if higher is better: of two scores the better one has the lower cost."""
        return -value if self.is_higher_better else value

    def text(self, value: float, more_digits: int = 0) -> str:
        """Return `value` with the metric's decimals and `more_digits`."""
        return _without_minus_zero(f"{value:.{self.digits + more_digits}f}")

    def is_shown_as_zero(self, value: float) -> bool:
        """Whether nothing but zeros is left of `value` with the metric's decimals."""
        return self.text(value) == self.text(0.0)

    def difference_text(self, value: float) -> str:
        """Return the difference `value` with the metric's decimals, with a sign unless these are all 0."""
        return _without_minus_zero(f"{value:+.{self.digits}f}")


def _without_minus_zero(text: str) -> str:
    return text[1:] if text[:1] in "+-" and not text.strip("+-0.") else text


def check_metric_name(name: str) -> None:
    """Raise `MetricError` if no metric can have the name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise MetricError(f"got the name {shortened(name)} of a metric, expected lower-case letters, digits and _")


def metric_of_score(score: str, metrics: Sequence[Metric]) -> Metric:
    """Return the metric named `score`, the value of `validation.score`, among the `metrics` of a task.

    If the task measures nothing, only the loss has a metric. Raises `ConfigError` for a score that the task does not give.
    """
    known = metrics or (Metric(LOSS, "loss"),)
    found = next((metric for metric in known if metric.name == score), None)
    if found is None:
        names = " or ".join(metric.name for metric in known)
        raise ConfigError(
            f"validation.score: got {shortened(score)}, expected a score that the task measures: {names}"
            if metrics
            else f"validation.score: got {shortened(score)}, expected {names}, since the task measures nothing"
        )
    return found


def metrics_to_json(metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """Return plain data for a summary."""
    return [asdict(metric) for metric in metrics]


def metrics_from_json(fields: Sequence[Mapping[str, Any]]) -> tuple[Metric, ...]:
    """Return the metrics of a summary, their texts printable: the inverse of `metrics_to_json`.

    Raises `TypeError` or `ValueError` for damaged data.
    """
    found = []
    for each in fields:
        shown: dict[str, Any] = {key: printable(value) if isinstance(value, str) else value for key, value in each.items()}
        found.append(Metric(**shown))
    return tuple(found)


def describe(scores: Mapping[str, float], metrics: Sequence[Metric], separator: str = " ") -> str:
    """Return `scores` in words, such as `validation loss 2.1034 BLEU 30.12`, in the order of `metrics`; the loss comes first.

    A metric without a score is left out: not every evaluation measures all of them.
    """
    found = [
        f"{'validation ' if metric.name == LOSS else ''}{metric.title} {metric.text(scores[metric.name], 1)}"
        for metric in metrics
        if metric.name in scores
    ]
    return separator.join(found)
