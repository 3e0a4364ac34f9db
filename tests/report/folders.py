"""Folders of runs that were never computed, with chosen numbers."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hvd_async.comparison.collection import Collection, Entry
from hvd_async.comparison.runs import read_run
from hvd_async.comparison.target import Target
from hvd_async.config import dump_config, parse_config
from hvd_async.errors import DataError
from hvd_async.tasks.metric import Metric, metrics_to_json
from tests.comparison.made import BLEU, LOSS

SOFTWARE = {
    "hvd_async": "0.1.0",
    "python": "3.11.2",
    "torch": "2.9",
    "cuda": None,
    "kernels": "compiled",
    "cpu": "A CPU",
    "gpu": None,
}
FINAL = 2.0


@dataclass(frozen=True)
class FakeRun:
    """A run with `num_steps` steps of one second for each of two workers; if synchronous, each step is followed by a
    wait of `wait` seconds.

    Its loss falls linearly from 4 to `final`, over `updates` updates with a weight of 100 and `seconds` seconds. `scores`:
    other scores of the final model; they rise linearly from 0, or fall as fast from infinity if lower is better. `unit`:
    that of its weights.
    """

    kind: str = "async"
    seconds: float = 100.0
    final: float = FINAL
    scores: Mapping[Metric, float] = field(default_factory=lambda: {BLEU: 30.0})
    num_measured: int = 5
    wait: float = 0.0
    num_overrun: int = 0
    emulation: dict[str, Any] | None = None
    is_simulated: bool = False
    refused: int = 0
    unit: str = "tokens"

    def write(self, folder: pathlib.Path, seed: int) -> None:
        """Write the three files of the run."""
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(self._config(seed), encoding="utf-8")
        (folder / "summary.json").write_text(json.dumps(self._summary(folder.name)), encoding="utf-8")
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in self._events()), encoding="utf-8")

    @property
    def num_steps(self) -> int:
        """Number of steps of each worker."""
        return int(self.seconds / (1.0 + self.wait))

    def _config(self, seed: int) -> str:
        tree = {
            "output": "runs/x",
            "seed": seed,
            "task": {
                "data": {"folder": "data"},
            },
            "training": {"weight": 1000},
            "strategy": {"kind": self.kind, "arrivals_per_update": 1 if self.kind == "async" else "workers"},
            "emulation": self.emulation or {},
        }
        return dump_config(parse_config(tree, source="test"))

    def _summary(self, name: str) -> dict[str, Any]:
        measured = []
        for number in range(1, self.num_measured + 1):
            share = number / self.num_measured
            loss = (
                self.final
                if math.isnan(self.final) and number == self.num_measured
                else 4.0 - share * (4.0 - _finite(self.final))
            )
            others = {
                metric.name: score * share if metric.is_higher_better else score / share
                for metric, score in self.scores.items()
            }
            updates = round(share * 100)
            measured.append(
                {
                    "version": updates,
                    "weight": 100 * updates,
                    "seconds": share * self.seconds,
                    "scores": {"loss": loss, **others},
                }
            )
        staleness = {"0": 2 * self.num_steps} if self.kind != "async" else {"0": self.num_steps, "1": self.num_steps}
        return {
            "name": name,
            "status": "finished",
            **({"simulated": True} if self.is_simulated else {}),
            "num_workers": 2,
            "parameters": 1000,
            "seconds": self.seconds,
            "weight": 10_000,
            "weight_unit": self.unit,
            "updates": 100,
            "mean_staleness": 0.5 if self.kind == "async" else 0.0,
            "staleness": staleness,
            "micro_batches": {"number": sum(staleness.values()), "mean_staleness": 0.5 if self.kind == "async" else 0.0},
            "refused": {"too_stale": self.refused} if self.refused else {},
            "steps": 2 * self.num_steps,
            "overrun_steps": self.num_overrun,
            "metrics": metrics_to_json([LOSS, *self.scores]),
            "measurements": measured,
        }

    def _events(self) -> list[dict[str, Any]]:
        ranks = [{"rank": rank, "host": "node1", "device": "cpu", "worker": rank} for rank in range(2)]
        events: list[dict[str, Any]] = [{"event": "start", "seconds": 0.0, "software": SOFTWARE, "ranks": ranks}]
        exchange = (0.0, self.wait, 0.0) if self.kind != "async" else (0.01, self.wait, 0.02)
        for step in range(self.num_steps):
            now = (step + 1) * (1.0 + self.wait)
            for worker in range(2):
                names = ("push_seconds", "wait_seconds", "pull_seconds")
                lengths = dict(zip(names, exchange if step else (0.0, 0.0, 0.0), strict=True))
                arrival = {
                    "worker": worker,
                    "weight": 50,
                    "step_seconds": 1.0 + 0.1 * worker * (step % 2),
                    "received_seconds": now,
                }
                events.append({"event": "arrival", "seconds": now, **arrival, **lengths})
            events.append({"event": "update", "seconds": now + 0.01, "update_seconds": 0.005})
        return [*events, {"event": "end", "seconds": self.seconds}]


def _finite(loss: float) -> float:
    return 3.0 if math.isnan(loss) else loss


@dataclass(frozen=True)
class VariantRuns:
    """Runs of a variant in an environment, one for each seed; None for a run that failed."""

    variant: str
    runs: Sequence[FakeRun | None]
    environment: str = "even"
    rate: float | None = None
    is_chosen: bool = True


def collect(root: pathlib.Path, wanted: Sequence[VariantRuns], target: Target | None, **fields: Any) -> Collection:
    """Write runs below `root`, and return their comparison."""
    entries = []
    for number, each in enumerate(wanted):
        for seed, made in enumerate(each.runs, start=1):
            folder = root / "runs" / f"{number:02d}-s{seed}"
            run, fault = None, ""
            if made is None:
                fault = f"{folder}: exit status 3"
            else:
                made.write(folder, seed)
            try:
                run = read_run(folder) if made is not None else None
            except DataError as error:
                fault = str(error)
            entries.append(Entry(each.environment, each.variant, each.rate, seed, folder, run, fault, each.is_chosen))
    return Collection(**{"title": "A test", "baseline": "horovod", "target": target, "entries": tuple(entries), **fields})
