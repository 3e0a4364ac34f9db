"""A study in exact simulation: methods on clusters, each at its best learning rate, over seeds, and what their tokens are worth.

The runs are ordinary run folders below one output folder, each computed by a process of its own; one that is finished is not
computed again, so a study that was interrupted goes on.
"""

from __future__ import annotations

import concurrent.futures
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import Field

from hvd_async.comparison.efficiency import Interval, interval, token_efficiency
from hvd_async.comparison.runs import RunResult, read_run
from hvd_async.config import Positive, RunConfig, Section, check, load_config, read_tree
from hvd_async.errors import ConfigError, DataError
from hvd_async.simulation.children import Children, stopping_on_signals

Overrides = dict[str, Any]

# What a study gives to each run itself.
_OWN_KEYS = ("optimizer.learning_rate", "seed", "output")


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
        return "-".join([_slug(self.cluster), _slug(self.method), _slug(self.rate), f"s{self.seed}"])


@dataclass(frozen=True)
class Row:
    """What is said of one method on one cluster.

    Attributes:
        is_at_the_edge: no higher, or no lower, rate was tried than the best.
        losses: at the end, by seed; infinite where the run diverged.
        num_seeds: asked for. The ratios rest on those of `efficiency.num` at which neither the run nor the baseline diverged;
            where there is none, there are no ratios.
    """

    cluster: str
    method: str
    rate: float
    is_at_the_edge: bool
    losses: tuple[float, ...]
    num_seeds: int
    staleness: float | None
    efficiency: Interval | None
    throughput: Interval | None
    speed_up: Interval | None


@dataclass(frozen=True)
class Diverged:
    """Instead of the result of a run whose loss was not finite at the end."""


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
        _check_names(self.config, str(path))
        _check_values(self.config, str(path))
        specs = [
            Spec(c, m, rate, seed) for c, m in self._pairs() for rate in self.config.rates for seed in self.config.seeds
        ]
        self._configs = {spec: load_config(self._base, self._overrides(spec)) for spec in specs}

    def config_of(self, spec: Spec) -> RunConfig:
        """What the run of `spec` is computed with."""
        return self._configs[spec]

    def run(self, jobs: int, say: Callable[[str], None]) -> list[str]:
        """Compute what is missing, `jobs` at a time; what failed, in words. Blocks, in the main thread.

        Raises `StoppedBySignal` at Ctrl-C and SIGTERM, when the processes of the runs have ended.
        """
        first = self.config.seeds[0]
        message = "study: finished runs are kept, the same command goes on"
        # Left from right to left: what runs is ended before the pool waits for it.
        with stopping_on_signals(message), concurrent.futures.ThreadPoolExecutor(jobs) as pool, Children() as children:

            def compute(specs: Sequence[Spec]) -> list[str]:
                return [failure for failure in pool.map(lambda spec: self._compute(spec, children, say), specs) if failure]

            failures = compute([Spec(c, m, rate, first) for rate in self.config.rates for c, m in self._pairs()])
            chosen = [(c, m, self._best_rate(c, m)) for c, m in self._pairs()]
            others = self.config.seeds[1:]
            failures += compute([Spec(c, m, rate, seed) for seed in others for c, m, rate in chosen if rate is not None])
        return failures

    def outdated(self) -> list[str]:
        """Finished runs in the output folder that do not count, since they were computed with another configuration."""
        return [spec.name for spec in self._configs if self._read(spec) is not None and not self._is_of_its_config(spec)]

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
        return [f"{key}={_yaml(value)}" for key, value in settings.items()]

    def _folder(self, spec: Spec) -> pathlib.Path:
        return self._output / "runs" / spec.name

    def _compute(self, spec: Spec, children: Children, say: Callable[[str], None]) -> str:
        """Why it failed; nothing if it is there now, or the study is being stopped."""
        if self._result(spec) is not None:
            return ""
        if self._read(spec) is not None:
            say(f"{spec.name}: was computed with another configuration; computed again")
        arguments = [argument for text in self._overrides(spec) for argument in ("--set", text)]
        done = children.run(["simulate", str(self._base), *arguments, "--overwrite"])
        if done is None:
            return ""
        if done.returncode == 0:
            ending = "diverged; " if isinstance(self._result(spec), Diverged) else ""
            say(f"{spec.name}: {ending}{done.stdout.strip().splitlines()[-1]}")
            return ""
        failure = f"{spec.name}: exit status {done.returncode}: {' '.join(done.stderr.split())[-500:]}"
        say(failure)
        return failure

    def _result(self, spec: Spec) -> RunResult | Diverged | None:
        """Of a run that has ended, and was computed with what it would be computed with now."""
        return self._read(spec) if self._is_of_its_config(spec) else None

    def _is_of_its_config(self, spec: Spec) -> bool:
        try:
            found = load_config(self._folder(spec) / "config.yaml")
        except ConfigError:
            return False
        expected = self._configs[spec]
        # The same folder has other names elsewhere.
        return found.model_copy(update={"output": expected.output}) == expected

    def _read(self, spec: Spec) -> RunResult | Diverged | None:
        try:
            result = read_run(self._folder(spec))
        except DataError:
            return Diverged() if _is_without_a_loss(self._folder(spec)) else None
        return result if math.isfinite(result.points[-1].loss) else Diverged()

    def _best_rate(self, cluster: str, method: str) -> float | None:
        """The lowest loss at the end, where one that diverged is above all others; None if there is no run."""
        first = self.config.seeds[0]
        results = {rate: self._result(Spec(cluster, method, rate, first)) for rate in self.config.rates}
        losses = {rate: _loss(result) for rate, result in results.items() if result is not None}
        return min(losses, key=lambda rate: losses[rate], default=None)

    def _row(self, cluster: str, method: str) -> Row | None:
        rate, base_rate = self._best_rate(cluster, method), self._best_rate(cluster, self.config.baseline)
        if rate is None or base_rate is None:
            return None
        losses, pairs = [], []
        for seed in self.config.seeds:
            run = self._result(Spec(cluster, method, rate, seed))
            base = self._result(Spec(cluster, self.config.baseline, base_rate, seed))
            if run is None or base is None:
                continue
            losses.append(_loss(run))
            if isinstance(run, RunResult) and isinstance(base, RunResult):
                pairs.append((base, run))
        if not losses:
            return None
        worth = [token_efficiency(base, run) for base, run in pairs]
        speed = [(run.tokens / run.seconds) / (base.tokens / base.seconds) for base, run in pairs]
        return Row(
            cluster,
            method,
            rate,
            len(self.config.rates) > 1 and rate in (min(self.config.rates), max(self.config.rates)),
            tuple(losses),
            len(self.config.seeds),
            sum(run.mean_staleness for _, run in pairs) / len(pairs) if pairs else None,
            interval(worth) if pairs else None,
            interval(speed) if pairs else None,
            interval([a * b for a, b in zip(worth, speed, strict=True)]) if pairs else None,
        )


def format_rows(rows: Sequence[Row]) -> str:
    """A Markdown table. Intervals are of 95 % over seeds."""
    lines = [
        "| cluster | method | rate | seeds | loss at the end | staleness | token efficiency | throughput | speed-up |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate = f"{row.rate:g}" + (" (at the edge)" if row.is_at_the_edge else "")
        num = row.efficiency.num if row.efficiency else 0
        seeds = str(num) if num == row.num_seeds else f"{num} of {row.num_seeds}"
        staleness = "-" if row.staleness is None else f"{row.staleness:.2f}"
        throughput = f"{row.throughput.mean:.2f}" if row.throughput else "-"
        cells = [row.cluster, row.method, rate, seeds, _shown(row.losses), staleness]
        cells += [str(row.efficiency or "-"), throughput, str(row.speed_up or "-")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(losses: Sequence[float]) -> str:
    """The mean of those that are finite, and how many are not."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return "diverged"
    num_diverged = len(losses) - len(finite)
    note = f" ({num_diverged} of {len(losses)} diverged)" if num_diverged else ""
    return f"{sum(finite) / len(finite):.3f}{note}"


def _loss(result: RunResult | Diverged) -> float:
    return result.points[-1].loss if isinstance(result, RunResult) else math.inf


def _is_without_a_loss(folder: pathlib.Path) -> bool:
    """Whether the run in `folder` has ended, and none of its losses is finite."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        losses = [measured["loss"] for measured in summary["measurements"]]
        return bool(losses) and not any(math.isfinite(loss) for loss in losses)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check_names(config: StudyConfig, source: str) -> None:
    """Raises `ConfigError` where two runs would have the same folder."""
    for key in ("methods", "clusters", "rates", "seeds"):
        slugs: dict[str, Any] = {}
        for value in getattr(config, key):
            slug = _slug(value)
            if slug in slugs:
                raise ConfigError(
                    f"{source}: {key}: got {slugs[slug]!r} and {value!r}, whose runs would have the same folder ({slug!r});"
                    " expected others"
                )
            slugs[slug] = value


def _check_values(config: StudyConfig, source: str) -> None:
    """Raises `ConfigError` for rates that are none, and where somebody else gives what the study gives."""
    for rate in config.rates:
        if not 0.0 < rate < math.inf:
            raise ConfigError(f"{source}: rates: got {rate:g}, expected numbers > 0")
    places: list[tuple[str, Overrides]] = [("set", config.set)]
    for key in ("methods", "clusters"):
        places += [(f"{key}: {name}", overrides) for name, overrides in getattr(config, key).items()]
    for place, overrides in places:
        for own in _OWN_KEYS:
            if own in _leaves(overrides):
                raise ConfigError(f"{source}: {place}: got {own}, expected other keys; a study gives it to each run itself")


def _leaves(overrides: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """The keys, those of sections as well, with dots."""
    for key, value in overrides.items():
        path = f"{prefix}{str(key).strip()}"
        yield path
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}.")


def _yaml(value: Any) -> str:
    """In one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def _slug(value: Any) -> str:
    """Part of the name of a folder."""
    if isinstance(value, float):
        return f"{value:g}"
    return re.sub(r"[^a-z0-9]+", "_", str(value).lower()).strip("_")
