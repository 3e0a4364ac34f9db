"""A study in exact simulation: methods on clusters, each at its best learning rate, over seeds, and what their tokens are worth.

The runs are ordinary run folders below one output folder, each computed by a process of its own; one that is finished is not
computed again, so a study that was interrupted goes on.
"""

from __future__ import annotations

import concurrent.futures
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import Field

from hvd_async.comparison.efficiency import Interval, interval, token_efficiency
from hvd_async.comparison.runs import RunResult, read_run
from hvd_async.config import Positive, Section, check, load_config, read_tree
from hvd_async.errors import ConfigError, DataError

Overrides = dict[str, Any]


class StudyConfig(Section):
    """One YAML file. Overrides are `key.path: value`, as of a configuration of a run."""

    base: str = Field(description="The configuration of a run from which all begin; relative to this file.")
    set: Overrides = Field({}, description="Overrides of all runs.")
    baseline: str = Field(description="The method with whose tokens the others' are compared.")
    methods: dict[str, Overrides] = Field(description="What is compared: overrides by name.")
    clusters: dict[str, Overrides] = Field(description="Where: overrides by name; methods are compared within each.")
    rates: tuple[float, ...] = Field(strict=False, description="Learning rates; each method is shown at its own best.")
    seeds: tuple[Positive, ...] = Field(strict=False, description="The first decides the best rate.")


@dataclass(frozen=True)
class Spec:
    """One run of a study."""

    cluster: str
    method: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join([_slug(self.cluster), _slug(self.method), f"{self.rate:g}", f"s{self.seed}"])


@dataclass(frozen=True)
class Row:
    """What is said of one method on one cluster. `is_at_the_edge`: no higher, or no lower, rate was tried than the best."""

    cluster: str
    method: str
    rate: float
    is_at_the_edge: bool
    losses: tuple[float, ...]
    staleness: float
    efficiency: Interval
    throughput: Interval
    speed_up: Interval


class Study:
    """Runs what is missing, and compares."""

    def __init__(self, path: pathlib.Path, output: pathlib.Path) -> None:
        """Reads and checks everything before anything runs. Raises `ConfigError`."""
        self.config = check(StudyConfig, read_tree(path, "file of a study"), str(path))
        self._base = path.parent / self.config.base
        self._output = output
        names = self.config.methods
        if self.config.baseline not in names:
            raise ConfigError(f"{path}: baseline: got {self.config.baseline!r}, expected one of {', '.join(names)}")
        for key in ("methods", "clusters", "rates", "seeds"):
            if not getattr(self.config, key):
                raise ConfigError(f"{path}: {key}: got none, expected one or more")
        for cluster in self.config.clusters:
            for method in names:
                load_config(self._base, self._overrides(Spec(cluster, method, self.config.rates[0], self.config.seeds[0])))

    def run(self, jobs: int, say: Callable[[str], None]) -> list[str]:
        """Compute what is missing, `jobs` at a time; what failed, in words. Blocks."""
        first = self.config.seeds[0]
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            searched = [Spec(c, m, rate, first) for rate in self.config.rates for c, m in self._pairs()]
            failures = [failure for failure in pool.map(lambda spec: self._compute(spec, say), searched) if failure]
            chosen = [(c, m, self._best_rate(c, m)) for c, m in self._pairs()]
            others = [Spec(c, m, rate, seed) for seed in self.config.seeds[1:] for c, m, rate in chosen if rate is not None]
            failures += [failure for failure in pool.map(lambda spec: self._compute(spec, say), others) if failure]
        return failures

    def rows(self) -> list[Row]:
        """Every method on every cluster, of the runs that are there."""
        found = [self._row(cluster, method) for cluster, method in self._pairs()]
        return [row for row in found if row is not None]

    def _pairs(self) -> Iterator[tuple[str, str]]:
        for cluster in self.config.clusters:
            for method in self.config.methods:
                yield cluster, method

    def _overrides(self, spec: Spec) -> list[str]:
        settings = {
            **self.config.set,
            **self.config.clusters[spec.cluster],
            **self.config.methods[spec.method],
            "optimizer.learning_rate": spec.rate,
            "seed": spec.seed,
            "output": str(self._output / "runs" / spec.name),
        }
        return [
            f"{key}={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}" for key, value in settings.items()
        ]

    def _compute(self, spec: Spec, say: Callable[[str], None]) -> str:
        """Why it failed; nothing if it is there now."""
        if self._result(spec) is not None:
            return ""
        arguments = [argument for text in self._overrides(spec) for argument in ("--set", text)]
        command = [sys.executable, "-m", "hvd_async", "simulate", str(self._base), *arguments, "--overwrite"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)  # a list, no shell
        if done.returncode == 0:
            say(f"{spec.name}: {done.stdout.strip().splitlines()[-1]}")
            return ""
        failure = f"{spec.name}: exit status {done.returncode}: {' '.join(done.stderr.split())[-500:]}"
        say(failure)
        return failure

    def _result(self, spec: Spec) -> RunResult | None:
        try:
            return read_run(self._output / "runs" / spec.name)
        except DataError:
            return None

    def _best_rate(self, cluster: str, method: str) -> float | None:
        first = self.config.seeds[0]
        results = {rate: self._result(Spec(cluster, method, rate, first)) for rate in self.config.rates}
        losses = {rate: result.finite_points[-1].loss for rate, result in results.items() if result is not None}
        return min(losses, key=lambda rate: losses[rate], default=None)

    def _row(self, cluster: str, method: str) -> Row | None:
        rate, base_rate = self._best_rate(cluster, method), self._best_rate(cluster, self.config.baseline)
        if rate is None or base_rate is None:
            return None
        pairs = []
        for seed in self.config.seeds:
            run = self._result(Spec(cluster, method, rate, seed))
            base = self._result(Spec(cluster, self.config.baseline, base_rate, seed))
            if run is not None and base is not None:
                pairs.append((base, run))
        if not pairs:
            return None
        worth = [token_efficiency(base, run) for base, run in pairs]
        speed = [(run.tokens / run.seconds) / (base.tokens / base.seconds) for base, run in pairs]
        return Row(
            cluster,
            method,
            rate,
            len(self.config.rates) > 1 and rate in (min(self.config.rates), max(self.config.rates)),
            tuple(run.finite_points[-1].loss for _, run in pairs),
            sum(run.mean_staleness for _, run in pairs) / len(pairs),
            interval(worth),
            interval(speed),
            interval([a * b for a, b in zip(worth, speed, strict=True)]),
        )


def format_rows(rows: Sequence[Row]) -> str:
    """A Markdown table. Intervals are of 95 % over seeds."""
    lines = [
        "| cluster | method | rate | loss at the end | staleness | token efficiency | throughput | speed-up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        loss = sum(row.losses) / len(row.losses)
        rate = f"{row.rate:g}" + (" (at the edge)" if row.is_at_the_edge else "")
        cells = [row.cluster, row.method, rate, f"{loss:.3f}", f"{row.staleness:.2f}"]
        cells += [str(row.efficiency), f"{row.throughput.mean:.2f}", str(row.speed_up)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
