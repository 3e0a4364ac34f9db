"""The list of a comparison's runs, saved beside them, so that a report can be made from the folder alone."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hvd_async.comparison.collection import NOT_RUN, OUTDATED, UNFINISHED, Collection, Entry, runs_of
from hvd_async.comparison.metrics import metrics_of
from hvd_async.comparison.runs import Run, first_event, read_run
from hvd_async.comparison.target import Target, WantedTarget, common_target
from hvd_async.config import RunConfig, load_config, parse_config, read_yaml
from hvd_async.errors import ConfigError, DataError
from hvd_async.runs.folder import RunFolder
from hvd_async.system.files import write_file
from hvd_async.system.json_text import parse_json
from hvd_async.system.printable import printable

_FILE = "comparison.json"


@dataclass(frozen=True)
class PlannedRun:
    """One run: `name` of its folder, and `config`, the YAML text with every key and with `name` as its output. The number of
    workers of a real run, and whether it is real, are not in that."""

    environment: str
    variant: str
    rate: float | None
    seed: int
    name: str
    config: str
    num_workers: int
    is_simulated: bool


@dataclass(frozen=True)
class SuitePlan:
    """All runs of a comparison, in the order of a report, with its target and baseline. See `Collection`."""

    title: str
    baseline: str
    target: WantedTarget | None
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    source: str
    text: str
    runs: tuple[PlannedRun, ...]

    def write(self, output: pathlib.Path) -> None:
        """Save the plan in `output`, the folder of the comparison. Raises `DataError` if the file system refuses."""
        path, content = output / _FILE, json.dumps(asdict(self), indent=1).encode()
        if _holds(path, content):
            return
        try:
            write_file(path, content)
        except DataError:
            # Tasks on several hosts write it at once, with equal temporary names if their process ids are equal.
            if not _holds(path, content):
                raise

    def of(self, environment: str, variant: str) -> list[PlannedRun]:
        """Return the runs of a variant in an environment."""
        return [run for run in self.runs if (run.environment, run.variant) == (environment, variant)]

    def best_rate(self, results: Mapping[str, Run | str], environment: str, variant: str) -> float | None:
        """Return the rate with the lowest final loss for the first seed, among the runs in `results`, which is by name;
        diverged runs rank last. None without rates, or without runs."""
        losses = {}
        for planned in self.of(environment, variant):
            run = results.get(planned.name)
            if planned.seed == self.seeds[0] and isinstance(run, Run) and planned.rate is not None:
                losses[planned.rate] = float("inf") if run.has_diverged else run.points[-1].loss
        return min(losses, key=lambda rate: losses[rate], default=None)


def has_plan(output: pathlib.Path) -> bool:
    """Whether `output` is the folder of a comparison."""
    return (output / _FILE).is_file()


def read_plan(output: pathlib.Path) -> SuitePlan:
    """Read the plan that `SuitePlan.write` saved in `output`. Raises `DataError` if it is missing or damaged."""
    path = output / _FILE
    try:
        fields = parse_json(path.read_bytes())
        target = None if fields["target"] is None else WantedTarget(**fields["target"])
        runs = tuple(PlannedRun(**run) for run in fields["runs"])
        return SuitePlan(**_with_tuples({**fields, "target": target, "runs": runs}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); expected the plan of a comparison by this"
            " version; `compare` writes it anew"
        ) from None


def _holds(path: pathlib.Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "rates": tuple(fields["rates"]), "seeds": tuple(fields["seeds"])}


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return the settings that affect results: those without output folder, log interval and trackers."""
    return config.model_dump(exclude={"output": True, "training": {"log_every_seconds", "trackers"}})


def folder_of(output: pathlib.Path, planned: PlannedRun) -> pathlib.Path:
    """Return the folder of a run, whether it exists or not."""
    return output / "runs" / planned.name


def fault_file(output: pathlib.Path, planned: PlannedRun) -> pathlib.Path:
    """Return the file that holds the error of a failed run."""
    return output / "faults" / f"{planned.name}.txt"


def result(output: pathlib.Path, planned: PlannedRun) -> Run | str:
    """Return the run if it has ended well with the planned configuration; else, in one line, why it does not count."""
    folder = folder_of(output, planned)
    if not RunFolder(folder).config.exists():
        return _fault(output, planned) or NOT_RUN
    if is_outdated(output, planned):
        return _fault(output, planned) or OUTDATED
    try:
        return read_run(folder)
    except DataError as error:
        return _fault(output, planned) or f"{UNFINISHED}{' '.join(str(error).split())}"


def is_outdated(output: pathlib.Path, planned: PlannedRun) -> bool:
    """Whether the folder holds another run than the planned one, or one of another version, ended or not."""
    folder = RunFolder(folder_of(output, planned))
    if not folder.config.exists():
        return False
    try:
        found, wanted = load_config(folder.config), parse_config(read_yaml(planned.config), planned.name)
    except ConfigError:
        return True
    begun = _begun_with(folder.root)
    is_other = begun is not None and begun != (planned.num_workers, planned.is_simulated)
    return is_other or settings_of(found) != settings_of(wanted)


def _begun_with(folder: pathlib.Path) -> tuple[int, bool] | None:
    """Return the number of workers, and whether they are simulated; None if that is not known."""
    start = first_event(folder)
    try:
        return sum(len(workers) for workers in start["node_workers"]), bool(start.get("simulated", False))
    except (KeyError, TypeError):
        return None


def _fault(output: pathlib.Path, planned: PlannedRun) -> str:
    try:
        return printable(fault_file(output, planned).read_text(encoding="utf-8", errors="replace").strip())
    except OSError:
        return ""


def read_collection(output: pathlib.Path, wanted: WantedTarget | None = None) -> Collection:
    """Return the comparison in the folder `output`, with the runs that exist. `wanted`: instead of the plan's target.

    Raises `DataError` if the folder holds none, and `ConfigError` for a target that no run has measured.
    """
    plan = read_plan(output)
    entries = read_entries(output, plan)
    title, baseline = printable(plan.title), printable(plan.baseline)
    target = target_of(wanted or plan.target, baseline, entries)
    return Collection(title, baseline, target, tuple(entries), plan.rates, plan.source, plan.text)


def read_entries(output: pathlib.Path, plan: SuitePlan) -> list[Entry]:
    """Return the runs of `plan` in the folder `output`, those that are missing included. With several rates, seeds other than the
    first count only at the best rate."""
    results = {planned.name: result(output, planned) for planned in plan.runs}
    best = {(p.environment, p.variant): plan.best_rate(results, p.environment, p.variant) for p in plan.runs}
    entries = []
    for planned in plan.runs:
        found, rate = results[planned.name], best[planned.environment, planned.variant]
        is_run = isinstance(found, Run)
        is_chosen = planned.rate is None or planned.rate == (plan.rates[0] if rate is None else rate)
        if planned.rate is not None and not is_run and not is_chosen and planned.seed != plan.seeds[0]:
            continue  # of the other rates only the first seed is wanted
        entries.append(
            Entry(
                planned.environment,
                planned.variant,
                planned.rate,
                planned.seed,
                folder_of(output, planned),
                found if isinstance(found, Run) else None,
                "" if isinstance(found, Run) else found,
                is_chosen,
            )
        )
    return entries


def target_of(wanted: WantedTarget | None, baseline: str, entries: Sequence[Entry]) -> Target | None:
    """Return the target of the runs in `entries`: that of `wanted`, else the derived one.

    Raises `ConfigError` for a metric that no run has, and `DataError` if the runs disagree on their metrics.
    """
    metrics = metrics_of(runs_of(entries))
    return derived_target(baseline, entries) if wanted is None else wanted.target(metrics)


def derived_target(baseline: str, entries: Sequence[Entry]) -> Target | None:
    """Return the highest of the common targets of the environments; see `common_target`."""
    found = []
    for environment in dict.fromkeys(entry.environment for entry in entries):
        by_variant: dict[str, list[Run]] = {}
        for entry in entries:
            if entry.environment == environment and entry.is_chosen and entry.run is not None:
                by_variant.setdefault(entry.variant, []).append(entry.run)
        own = by_variant.pop(baseline, [])
        target = common_target(own, list(by_variant.values())) if own else None
        if target is not None:
            found.append(target)
    return max(found, key=lambda target: target.value, default=None)
