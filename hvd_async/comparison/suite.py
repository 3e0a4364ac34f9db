"""A suite of comparable runs: one YAML file, checked as a whole before anything runs.

Runs are matched by construction: what a variant may not change (data, evaluation, budget) is refused, and the remaining
differences are read from the configurations.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from hvd_async.comparison.plan import PlannedRun, SuitePlan
from hvd_async.comparison.target import WantedTarget
from hvd_async.config import (
    BOUNDS,
    PathText,
    Positive,
    PositiveAmount,
    PositiveSeconds,
    Ranks,
    RunConfig,
    Section,
    Seed,
    check,
    dotted,
    dump_config,
    dump_yaml_line,
    load_config,
    read_tree,
    set_value,
)
from hvd_async.emulation.idling import check_emulation
from hvd_async.emulation.step_times import StepTimes
from hvd_async.errors import ConfigError
from hvd_async.system.limits import MOST, MOST_RANKS
from hvd_async.system.printable import printable, shortened
from hvd_async.tasks.metric import check_metric_name


def _as_keys(value: Any) -> Any:
    return dotted(value, RunConfig) if isinstance(value, Mapping) else value


Overrides = Annotated[dict[str, Any], BeforeValidator(_as_keys)]

# Settings that the suite gives to each run, and settings that are equal in all runs of a suite.
_OWN_KEYS = (
    "seed",
    "output",
    "simulation.workers",
    *(f"training.{bound}" for bound in BOUNDS),
    *(f"validation.{key}" for key in ("when", "every", "every_weight", "every_epochs", "patience")),
)
_ALIKE = ("validation", "emulation")
_OF_THE_SUITE = re.compile(
    r"(-w|--workers|--launcher|--set|--resume|--auto-resume|--overwrite|--dry-run|--slurm|--submit)(=|$)"
)
# The environment of a suite that names none; it does not appear in folder names.
_ONLY_ENVIRONMENT = "all"


class BudgetConfig(Section):
    """Length of every run: exactly one of the keys."""

    renamed: ClassVar[Mapping[str, str]] = {"tokens": "weight"}

    weight: Positive | None = Field(None, description="Total weight: the run takes whole batches until it reaches this.")
    updates: Positive | None = Field(None, description="Updates.")
    seconds: PositiveSeconds | None = Field(None, description="Seconds of training.")

    @model_validator(mode="after")
    def _one(self) -> BudgetConfig:
        given = [name for name, value in self.model_dump().items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"got {', '.join(given) or 'none of them'}, expected exactly one of weight, updates and seconds"
            )
        return self


class SuiteConfig(Section):
    """A suite file. Overrides are `key.path: value`, or sections with the keys that are to change; in `variants` and
    `environments` the key `workers` belongs to the suite."""

    renamed: ClassVar[Mapping[str, str]] = {"settings": "environments"}

    base: PathText = Field(description="The run configuration from which all runs start; relative to this file.")
    launcher: Literal["mpirun", "srun", "horovodrun-mpi", "horovodrun-gloo", "simulate"] = Field(
        "mpirun",
        description="The program that starts the ranks of a run; `simulate`: none, the run is computed on a simulated"
        " cluster.",
    )
    launch_arguments: tuple[str, ...] = Field(
        (), strict=False, description="Passed on to `hvd-async launch`, such as `[--hostfile, hosts]`."
    )
    workers: Ranks = Field(4, description="Ranks that train; strategy `single` always has one.")
    budget: BudgetConfig = Field(description="Length of every run.")
    measure_every: Positive = Field(description="Weight between snapshots, which are measured after a run has ended.")
    target: dict[str, Annotated[float, Field(ge=-MOST, le=MOST)]] | None = Field(
        None,
        description="The quality to which runs are timed: a metric of their task, such as `loss`, and its value. Absent: the"
        " lowest loss that all runs of the baseline and of at least one other variant reached.",
    )
    baseline: str = Field(description="The variant with which the others are compared.")
    set: Overrides = Field({}, description="Overrides for all runs.")
    variants: dict[str, Overrides] = Field(description="Overrides by name: the variants to compare.")
    environments: dict[str, Overrides] = Field(
        {_ONLY_ENVIRONMENT: {}}, description="Overrides by name: the environments within which variants are compared."
    )
    rates: tuple[PositiveAmount, ...] = Field(
        (), strict=False, description="Learning rates; each variant is shown at its best. Absent: each has one."
    )
    seeds: tuple[Annotated[Seed, Field(ge=1)], ...] = Field(
        (1,), strict=False, description="Seeds; the first decides the best rate."
    )

    @field_validator("target")
    @classmethod
    def _one_metric(cls, target: dict[str, float] | None) -> dict[str, float] | None:
        if target is not None and len(target) != 1:
            raise ValueError(f"got {', '.join(target) or 'no metric'}, expected exactly one metric with its value")
        for name in target or ():
            check_metric_name(name)
        return target

    @property
    def wanted_target(self) -> WantedTarget | None:
        """The target; None: it is derived from the runs."""
        return None if self.target is None else WantedTarget(*next(iter(self.target.items())))


@dataclass(frozen=True)
class Spec:
    """One run of a suite."""

    environment: str
    variant: str
    rate: float | None
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        environment = [] if self.environment == _ONLY_ENVIRONMENT else [_slug(self.environment)]
        rate = [] if self.rate is None else [_slug(self.rate)]
        return "-".join([*environment, _slug(self.variant), *rate, f"s{self.seed}"])


class Suite:
    """The runs that a file asks for.

    Attributes:
        config: the file.
        configs: the configuration of each run.
        specs: every run that may be needed, in the order of a report.
        plan: these runs, for `comparison.plan`.
    """

    def __init__(self, path: pathlib.Path, output: pathlib.Path, overrides: Sequence[str] = ()) -> None:
        """Read and check everything before anything runs. `overrides` change keys of the file: each is `key.path=value`, the
        value in YAML; keys below `set`, `variants.NAME` and `environments.NAME` are those of runs. Raises `ConfigError`."""
        tree = read_tree(path, "file of a suite")
        if "training" in tree and "variants" not in tree:
            raise ConfigError(
                f"{path}: got the configuration of a run, expected a suite; compute it with `hvd-async"
                f" launch {path}`, or name it as the `base` of a suite"
            )
        for override in overrides:
            _spread(tree)
            _apply(tree, override)
        self.config = check(SuiteConfig, tree, str(path))
        self.base = path.parent / self.config.base
        self._names_strategy = "strategy.kind" in _leaves(read_tree(self.base, "configuration of a run"))
        self._output = output
        self._changes = "".join(f"# changed: {printable(override)}\n" for override in overrides)
        if self.config.baseline not in self.config.variants:
            names = ", ".join(self.config.variants)
            raise ConfigError(f"{path}: baseline: got {self.config.baseline!r}, expected one of {names}")
        for key in ("variants", "environments", "seeds"):
            if not getattr(self.config, key):
                raise ConfigError(f"{path}: {key}: got none, expected at least one")
        _check_names(self.config, str(path))
        _check_values(self.config, str(path))
        self.specs = list(self._all())
        self.configs = self._load_all(str(path))
        self.plan = self._make_plan(path)

    @property
    def most_workers(self) -> int:
        """Largest number of workers of any run."""
        return max(self._num_workers(spec) for spec in self.specs)

    def command(self, spec: Spec, *, resume: bool = False) -> list[str]:
        """Return the arguments of `hvd-async` that compute the run of `spec`, resuming the existing run or replacing it."""
        arguments = [argument for text in self._overrides(spec) for argument in ("--set", text)]
        begin = "--resume" if resume else "--overwrite"
        if self.config.launcher == "simulate":
            return ["simulate", str(self.base), *arguments, begin]
        where = [
            "--workers",
            str(self._num_workers(spec)),
            "--launcher",
            self.config.launcher,
            *self.config.launch_arguments,
        ]
        return ["launch", str(self.base), *arguments, begin, *where]

    def _all(self) -> Iterator[Spec]:
        for environment in self.config.environments:
            for variant in self.config.variants:
                for rate in self.config.rates or (None,):
                    for seed in self.config.seeds:
                        yield Spec(environment, variant, rate, seed)

    def _load_all(self, source: str) -> dict[Spec, RunConfig]:
        """Load all configurations. Raises `ConfigError` with the errors of all, each once, with the first run that has
        it."""
        found: dict[Spec, RunConfig] = {}
        faults: dict[str, str] = {}
        for spec in self.specs:
            origins, where = self._origins(spec), f"{source}: {self._title(spec)}"
            try:
                found[spec] = load_config(self.base, self._overrides(spec), origins)
                self._check(spec, found[spec])
            except ConfigError as error:
                for line in str(error).splitlines():
                    has_origin = any(line.startswith(f"{origin}: ") for origin in origins.values())
                    faults.setdefault(line, f"{source if has_origin else where}: {line}")
        if faults:
            raise ConfigError("\n".join(faults.values()))
        return found

    def _origins(self, spec: Spec) -> dict[str, str]:
        """Return where the file has each key of `spec`."""
        suite = self.config
        layers = {
            "set": suite.set,
            f"environments: {spec.environment}": suite.environments[spec.environment],
            f"variants: {spec.variant}": suite.variants[spec.variant],
        }
        return {key: origin for origin, overrides in layers.items() for key in overrides}

    def _title(self, spec: Spec) -> str:
        """Return the variant, and its environment unless there is only one without a name."""
        return spec.variant if spec.environment == _ONLY_ENVIRONMENT else f"{spec.environment}: {spec.variant}"

    def _check(self, spec: Spec, config: RunConfig) -> None:
        """Raise `ConfigError` for settings that no run of this suite can use."""
        layers = (self.config.set, self.config.environments[spec.environment], self.config.variants[spec.variant])
        is_named = self._names_strategy or any("strategy.kind" in _leaves(layer) for layer in layers)
        if not is_named and self._workers(spec) > 1:
            raise ConfigError(
                f"strategy.kind: not given, and so {config.strategy.kind}, which has one of the {self._workers(spec)} workers;"
                " expected one in the base, in `set` or in each variant"
            )
        self._check_alike(spec, config)
        self._check_target(config)
        workers = 1 if config.strategy.is_single else self._workers(spec)
        if self.config.launcher == "simulate":
            StepTimes(config.emulation, 0, workers)
        else:
            check_emulation(config.emulation, workers)
            config.strategy.check_num_workers(workers)
        if self.config.launcher == "horovodrun-gloo" and config.strategy.needs_mpi:
            raise ConfigError(
                f"strategy.kind: got {config.strategy.kind} with launcher horovodrun-gloo, which has no"
                " MPI, expected horovod or single; or choose another launcher"
            )

    def _check_target(self, config: RunConfig) -> None:
        """Raise `ConfigError` if runs of `config` will not measure the target's metric."""
        target, measured = self.config.target or {}, config.task.measured
        for name in target:
            if measured is not None and name not in measured:
                raise ConfigError(f"target: got {name}, expected a metric that the task measures: {', '.join(measured)}")

    def _check_alike(self, spec: Spec, config: RunConfig) -> None:
        """Raise `ConfigError` if a variant changes what must be alike in all runs."""
        alike = {"task", *_ALIKE, *(f"task.{name}" for name in config.task.must_be_alike)}
        for key in _leaves(self.config.variants[spec.variant]):
            parts = key.split(".")
            if key in alike or any(".".join(parts[:number]) in alike - {"task"} for number in range(1, len(parts))):
                raise ConfigError(
                    f"got {key}, expected it in `set` or `environments`, since variants are compared on equal terms"
                )

    def _overrides(self, spec: Spec) -> list[str]:
        suite = self.config
        merged: Overrides = {}
        for overrides in (suite.set, suite.environments[spec.environment], suite.variants[spec.variant]):
            for key, value in overrides.items():
                merged.pop(key, None)  # moved to the end: `strategy` after `strategy.kind` would undo it
                merged[key] = value
        merged.pop("workers", None)
        if suite.launcher == "simulate":
            merged["simulation.workers"] = self._workers(spec)
        if spec.rate is not None:
            merged["optimizer.learning_rate"] = spec.rate
        merged |= {f"training.{bound}": getattr(suite.budget, bound, None) for bound in BOUNDS}
        merged |= {f"validation.{key}": None for key in ("every", "every_epochs", "patience")} | {"validation.when": "after"}
        merged |= {"validation.every_weight": suite.measure_every, "seed": spec.seed}
        merged["output"] = str(self._output / "runs" / spec.name)
        return [f"{key}={dump_yaml_line(value)}" for key, value in merged.items()]

    def _workers(self, spec: Spec) -> int:
        layers = (self.config.variants[spec.variant], self.config.environments[spec.environment])
        return int(next((layer["workers"] for layer in layers if "workers" in layer), self.config.workers))

    def _num_workers(self, spec: Spec) -> int:
        """Return the number of workers that the run will have."""
        return 1 if self.configs[spec].strategy.is_single else self._workers(spec)

    def _make_plan(self, path: pathlib.Path) -> SuitePlan:
        suite = self.config
        return SuitePlan(
            title=path.stem,
            baseline=suite.baseline,
            target=suite.wanted_target,
            rates=suite.rates,
            seeds=suite.seeds,
            source=path.name,
            text=path.read_text(encoding="utf-8") + self._changes,
            runs=tuple(self._planned(spec) for spec in self.specs),
        )

    def _planned(self, spec: Spec) -> PlannedRun:
        # A plan is the same wherever its folder is.
        text = dump_config(self.configs[spec].model_copy(update={"output": spec.name}))
        is_simulated = self.config.launcher == "simulate"
        workers = self._num_workers(spec)
        return PlannedRun(spec.environment, spec.variant, spec.rate, spec.seed, spec.name, text, workers, is_simulated)


def _spread(tree: dict[Any, Any]) -> None:
    """Put the dotted keys of sections in place of maps wherever `tree`, the content of a suite file, has keys of runs."""
    layers = [("set", tree)]
    layers += [
        (name, tree[key]) for key in ("variants", "environments") if isinstance(tree.get(key), dict) for name in tree[key]
    ]
    for name, place in layers:
        if isinstance(place.get(name), dict):
            with contextlib.suppress(ValueError):  # which the check reports
                place[name] = dotted(place[name], RunConfig)


def _apply(tree: dict[Any, Any], override: str) -> None:
    """Set in `tree`, the content of a suite file, what `override` says. Below `set`, `variants.NAME` and `environments.NAME` the
    key is one of a run, so that `set.optimizer.kind=muon` adds `optimizer.kind`; a name may hold dots and `=`. Raises
    `ConfigError`."""
    key, separator, text = override.partition("=")
    first, _, rest = key.strip().partition(".")
    if first in ("variants", "environments") and rest:
        section, below = tree.get(first), override.strip()[len(first) + 1 :]
        names = [str(name) for name in section] if isinstance(section, dict) else []
        found = [name for name in names if re.match(rf"{re.escape(name)}\s*[.=]", below)]
        if not found:
            known = printable(", ".join(map(repr, names)) or "it has none")
            raise ConfigError(f"--set {printable(override)}: expected one of the {first} of the suite: {known}")
        name = max(found, key=len)
        key, separator, text = below[len(name) :].strip().partition("=")
        parts = [first, name, *([key.strip()[1:]] if key else [])]
    elif first == "set" and rest:
        parts = [first, rest]
    else:
        parts = key.strip().split(".")
    set_value(tree, override, parts, text if separator else None)
    if first in ("set", "variants", "environments") and len(parts) == (2 if first == "set" else 3):
        layer = tree[first] if first == "set" else tree[first][parts[1]]
        try:
            layer |= dotted({parts[-1]: layer.pop(parts[-1])}, RunConfig)  # the keys that it names change
        except ValueError as error:
            raise ConfigError(f"--set {printable(override)}: {error}") from None


def _check_names(config: SuiteConfig, source: str) -> None:
    """Raise `ConfigError` if two runs would share a folder."""
    for key in ("variants", "environments", "rates", "seeds"):
        slugs: dict[str, Any] = {}
        for value in getattr(config, key):
            slug = _slug(value)
            if not str(value).isprintable():
                raise ConfigError(f"{source}: {key}: got {value!r}, expected a one-line name without control characters")
            if not slug:
                raise ConfigError(
                    f"{source}: {key}: got {value!r}, expected at least one letter a to z or digit, for the folder's name"
                )
            if slug in slugs:
                raise ConfigError(
                    f"{source}: {key}: got {slugs[slug]!r} and {value!r}, whose runs would share a folder"
                    f" ({slug!r}); expected other names"
                )
            slugs[slug] = value


def _check_values(config: SuiteConfig, source: str) -> None:
    """Raise `ConfigError` for keys that the suite sets itself."""
    _check_launch_arguments(config, f"{source}: launch_arguments")
    _check_overrides(f"{source}: set", config.set, (*_OWN_KEYS, "workers"), config.rates)
    for name, overrides in config.environments.items():
        _check_overrides(f"{source}: environments: {name}", overrides, _OWN_KEYS, config.rates)
    for name, overrides in config.variants.items():
        place = f"{source}: variants: {name}"
        _check_overrides(place, overrides, _OWN_KEYS, config.rates)


def _check_launch_arguments(config: SuiteConfig, place: str) -> None:
    if config.launch_arguments and config.launcher == "simulate":
        raise ConfigError(f"{place}: got arguments with launcher simulate, expected none; nothing is launched")
    own = [text for text in config.launch_arguments if _OF_THE_SUITE.match(text)]
    if own:
        raise ConfigError(f"{place}: got {own[0]}, expected other arguments; a suite sets it for each run")


def _check_overrides(place: str, overrides: Overrides, own_keys: tuple[str, ...], rates: tuple[float, ...]) -> None:
    own = (*own_keys, *(["optimizer.learning_rate"] if rates else []))
    for key in _leaves(overrides):
        if key in own:
            raise ConfigError(f"{place}: got {key}, expected other keys; a suite sets it for each run")
    workers = overrides.get("workers", 1)
    if not isinstance(workers, int) or isinstance(workers, bool) or not 1 <= workers <= MOST_RANKS:
        raise ConfigError(f"{place}: workers: got {shortened(workers)}, expected a whole number from 1 to {MOST_RANKS:,}")


def _leaves(overrides: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys, including those of sections."""
    for key, value in overrides.items():
        path = f"{prefix}{str(key).strip()}"
        yield path
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}.")


def _slug(value: Any) -> str:
    """Return `value` as part of a folder name."""
    if isinstance(value, float):
        return f"{value:g}"
    return re.sub(r"[^a-z0-9]+", "_", str(value).lower()).strip("_")
