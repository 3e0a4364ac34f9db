"""Totals of a run so far: weight, updates, staleness, and the share of each worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hvd_async.runs.recorder_part import RunPart
from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.system.json_text import plain_number


@dataclass
class WorkerMetrics:
    """Totals of one worker: of its applied arrivals, and `seconds`, its time in steps, from claim to push, with emulated
    idling."""

    arrivals: int = 0
    weight: float = 0
    seconds: float = 0.0
    staleness_sum: int = 0
    refused: Counter[Refusal] = field(default_factory=Counter)

    @property
    def mean_staleness(self) -> float:
        """Mean staleness of applied arrivals, in versions; 0 before the first arrival."""
        return self.staleness_sum / self.arrivals if self.arrivals else 0.0


@dataclass
class MicroBatchMetrics:
    """The micro-batches of applied arrivals, at least one each: their number, and the sum of their staleness in versions."""

    number: int = 0
    staleness_sum: int = 0

    @property
    def mean_staleness(self) -> float:
        """Mean staleness, in versions; 0 before the first arrival."""
        return self.staleness_sum / self.number if self.number else 0.0


@dataclass
class RunMetrics:
    """Totals of a run. `staleness` counts applied arrivals by their staleness in versions, that of their first micro-batch."""

    weight: float = 0
    updates: int = 0
    staleness: Counter[int] = field(default_factory=Counter)
    micro_batches: MicroBatchMetrics = field(default_factory=MicroBatchMetrics)
    refused: Counter[Refusal] = field(default_factory=Counter)
    workers: dict[int, WorkerMetrics] = field(default_factory=dict)

    def add_update(self, update: Update) -> None:
        """Count an update and its arrivals."""
        self.updates += 1
        self.weight += update.weight
        for arrival in update.arrivals:
            staleness = update.staleness(arrival)
            self.staleness[staleness] += 1
            parts = update.part_staleness(arrival)
            self.micro_batches.number += len(parts)
            self.micro_batches.staleness_sum += sum(parts)
            worker = self.workers.setdefault(arrival.worker, WorkerMetrics())
            worker.arrivals += 1
            worker.weight += arrival.weight
            worker.seconds += arrival.step_seconds
            worker.staleness_sum += staleness

    def add_refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """Count an arrival that is in no update."""
        self.refused[refusal] += 1
        self.workers.setdefault(arrival.worker, WorkerMetrics()).refused[refusal] += 1

    @property
    def mean_staleness(self) -> float:
        """Mean staleness of applied arrivals, in versions; 0 before the first arrival."""
        total = self.staleness.total()
        return sum(value * count for value, count in self.staleness.items()) / total if total else 0.0

    def describe_staleness(self) -> str:
        """Return the mean staleness in words, with that of micro-batches if batches were divided."""
        parts = self.micro_batches
        return staleness_text(self.mean_staleness, parts.mean_staleness, parts.number / (self.staleness.total() or 1))

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a summary or a checkpoint."""
        return {
            "weight": plain_number(self.weight),
            "updates": self.updates,
            "mean_staleness": self.mean_staleness,
            "staleness": {str(value): count for value, count in sorted(self.staleness.items())},
            "micro_batches": {**asdict(self.micro_batches), "mean_staleness": self.micro_batches.mean_staleness},
            "refused": {refusal.value: count for refusal, count in self.refused.items()},
            "workers": {
                str(number): {
                    "arrivals": w.arrivals,
                    "weight": plain_number(w.weight),
                    "seconds": w.seconds,
                    "mean_staleness": w.mean_staleness,
                    "staleness_sum": w.staleness_sum,
                    "refused": {refusal.value: count for refusal, count in w.refused.items()},
                }
                for number, w in sorted(self.workers.items())
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunMetrics:
        """Return the totals from the result of `to_json`."""
        return cls(
            weight=data["weight"],
            updates=data["updates"],
            staleness=Counter({int(value): count for value, count in data["staleness"].items()}),
            micro_batches=MicroBatchMetrics(data["micro_batches"]["number"], data["micro_batches"]["staleness_sum"]),
            refused=_refusals(data["refused"]),
            workers={
                int(number): WorkerMetrics(
                    w["arrivals"], w["weight"], w["seconds"], w["staleness_sum"], _refusals(w["refused"])
                )
                for number, w in data["workers"].items()
            },
        )


class Totals(RunPart):
    """Keeps the totals of a run, including earlier processes.

    Attributes:
        metrics: the totals so far.
    """

    def __init__(self) -> None:
        """Start with totals of 0."""
        self.metrics = RunMetrics()

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """Count the arrival."""
        self.metrics.add_refused(arrival, refusal)

    def updated(self, update: Update) -> None:
        """Count the update."""
        self.metrics.add_update(update)

    def state(self) -> dict[str, Any]:
        """Return the totals."""
        return {"metrics": self.metrics.to_json()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the totals."""
        self.metrics = RunMetrics.from_json(state["metrics"])


def _refusals(counts: Mapping[str, int]) -> Counter[Refusal]:
    return Counter({Refusal(reason): count for reason, count in counts.items()})


def staleness_text(mean: float, mean_of_parts: float, num_parts: float) -> str:
    """Return the `mean` staleness of arrivals in words, with that of their micro-batches, `num_parts` a batch, if batches were
    divided."""
    return f"{mean:.2f}" + (f" (micro-batches {mean_of_parts:.2f}, {num_parts:.1f} a batch)" if num_parts > 1 else "")
