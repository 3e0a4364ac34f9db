"""Settings that differ between variants or environments, and settings that are equal in all: from the configurations that
ran."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hvd_async.comparison.collection import Collection, runs_of
from hvd_async.comparison.differences import OF_EACH_RUN, differing_keys, own_leaves
from hvd_async.comparison.runs import Run
from hvd_async.config import RunConfig
from hvd_async.config.yaml import dump_yaml
from hvd_async.report.document import Block, Cell, Code, Column, Fold, Items, PageSection, Table, Text
from hvd_async.report.emulated_workers import describe_emulation
from hvd_async.report.number_format import NOTHING
from hvd_async.report.software import software_of

_KEY = Column("key", is_number=False)
# Differences that are not keys of a configuration.
_FACTS: Mapping[str, Callable[[Run], Any]] = {
    "(ranks that train)": lambda run: run.num_workers,
    "(unit of weight)": lambda run: run.weight_unit,
    "(simulated)": lambda run: run.is_simulated,
    "(data fingerprint)": lambda run: run.data_fingerprint,
}


def setup(collection: Collection) -> PageSection:
    """Return the section. Reads the beginning of each event log."""
    blocks: list[Block] = []
    tables = {environment: _between_variants(collection, environment) for environment in collection.environments}
    several = len(tables) > 1
    if several and (between := _between_environments(collection)):
        blocks.append(between)
    distinct: list[Sequence[Any]] = []
    for table in tables.values():
        if table is None or [table.columns, table.rows] in distinct:
            continue
        distinct.append([table.columns, table.rows])
        same = [
            name for name, other in tables.items() if other and [other.columns, other.rows] == [table.columns, table.rows]
        ]
        where = f" ({', '.join(same)})" if several and len(same) < len(tables) else ""
        blocks.append(Table(f"{table.caption}{where}", table.columns, table.rows))
    if not blocks:
        blocks.append(Text("The configurations of the runs differ only in the seed."))
    every = runs_of(collection.entries)
    blocks.append(
        Fold(
            "What all runs share: their configurations without what differs", [Code(_shared([run.config for run in every]))]
        )
    )
    blocks.append(PageSection("Lengths of steps", "steps", [Items(list(_emulations(collection)))]))
    blocks.append(PageSection("Where and with what", "origin", [Items(software_of(every))]))
    return PageSection("What differs", "differences", blocks)


def _shared(configs: Sequence[RunConfig]) -> str:
    """Return the keys of the configurations that have one value in all of them, as YAML."""
    trees = [config.model_dump() for config in configs]
    return dump_yaml(_common([{key: tree[key] for key in tree if key not in OF_EACH_RUN} for tree in trees]))


def _common(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the keys that have equal values in all `trees`, without sections of which nothing is left."""
    found: dict[str, Any] = {}
    for key in trees[0]:
        values: list[Any] = [tree.get(key) for tree in trees]
        if all(isinstance(value, dict) for value in values):
            if inner := _common(values):
                found[key] = inner
        elif all(key in tree and tree[key] == values[0] for tree in trees):
            found[key] = values[0]
    return found


def _runs(collection: Collection, environment: str) -> dict[str, list[Run]]:
    """Return the runs of each variant that has any."""
    found = {variant: runs_of(collection.chosen(environment, variant)) for variant in collection.variants(environment)}
    return {variant: runs for variant, runs in found.items() if runs}


def _between_variants(collection: Collection, environment: str) -> Table | None:
    return _table("Between variants", _runs(collection, environment))


def _between_environments(collection: Collection) -> Table | None:
    """Return the keys in which runs of a variant differ between environments."""
    by_environment = {environment: _runs(collection, environment) for environment in collection.environments}
    keys: dict[str, None] = {}
    for variant in dict.fromkeys(variant for runs in by_environment.values() for variant in runs):
        keys |= dict.fromkeys(
            differing_keys([run.config for runs in by_environment.values() for run in runs.get(variant, [])])
        )
    groups = {environment: [run for runs in found.values() for run in runs] for environment, found in by_environment.items()}
    return _table("Between environments", {environment: runs for environment, runs in groups.items() if runs}, list(keys))


def differs_within_a_seed(runs: Sequence[Run], get: Callable[[Run], Any]) -> bool:
    """Whether runs of one seed differ in `get`. Each seed has its own vocabulary, and so its own fingerprint."""
    by_seed: dict[int, set[Any]] = {}
    for run in runs:
        by_seed.setdefault(run.config.seed, set()).add(get(run))
    return any(len(found) > 1 for found in by_seed.values())


def _table(caption: str, groups: Mapping[str, Sequence[Run]], keys: Sequence[str] | None = None) -> Table | None:
    """Return a table with a column for each group."""
    every = [run for runs in groups.values() for run in runs]
    if keys is None:
        keys = differing_keys([run.config for run in every])
    facts = {name: get for name, get in _FACTS.items() if differs_within_a_seed(every, get)}
    if not keys and not facts:
        return None
    values = {name: [own_leaves(run.config) for run in runs] for name, runs in groups.items()}
    rows = [[Cell(key), *(Cell(_joined([tree.get(key) for tree in trees])) for trees in values.values())] for key in keys]
    rows += [
        [Cell(name), *(Cell(_joined([get(run) for run in runs])) for runs in groups.values())] for name, get in facts.items()
    ]
    return Table(caption, [_KEY, *(Column(name, is_number=False) for name in groups)], rows)


def _joined(values: Sequence[Any]) -> str:
    """Return the value, or all values if the runs of a group differ."""
    return " / ".join(dict.fromkeys(_written(value) for value in values))


def _written(value: Any) -> str:
    if value is None or value == {}:
        return NOTHING
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _emulations(collection: Collection) -> list[str]:
    """Describe the emulation of each environment, and of each variant where they differ."""
    lines = []
    for environment in collection.environments:
        words = {variant: _words(runs[0]) for variant, runs in _runs(collection, environment).items()}
        prefix = f"{environment}: " if len(collection.environments) > 1 else ""
        if len(set(words.values())) == 1:
            lines.append(f"{prefix}{next(iter(words.values()))}.")
        else:
            lines += [f"{prefix}{variant}: {text}." for variant, text in words.items()]
    return lines


def _words(run: Run) -> str:
    return describe_emulation(run.config.emulation, run.weight_unit, is_simulated=run.is_simulated)
