"""Comparisons of run folders that no suite made."""

from __future__ import annotations

import itertools
import pathlib
import re
from collections.abc import Sequence

from hvd_async.comparison.collection import Collection, Entry
from hvd_async.comparison.differences import differing_keys
from hvd_async.comparison.plan import derived_target, has_plan, read_collection
from hvd_async.comparison.runs import Run, read_run
from hvd_async.comparison.target import Target
from hvd_async.errors import ConfigError

_ALL = "all"
# Number of variants that a title names.
_MOST_NAMED = 3


def gather(folders: Sequence[pathlib.Path], baseline: str | None, target: Target | None) -> Collection:
    """Return the comparison of the runs in `folders`, or the comparison in the single folder given.

    Runs that differ only in their seeds are one variant, named after their folders. `baseline`: the name of a variant, by
    default that of the first run. Raises `DataError` for a folder without a run that has ended, and `ConfigError` for an
    unknown baseline.
    """
    if len(folders) == 1 and has_plan(folders[0]):
        collection = read_collection(folders[0])
    else:
        collection = _of_runs([read_run(folder) for folder in folders])
    if baseline is not None:
        names = list(dict.fromkeys(entry.variant for entry in collection.entries))
        if baseline not in names:
            raise ConfigError(f"--baseline: got {baseline!r}, expected one of {', '.join(names)}")
        collection = _with(collection, baseline, derived_target(baseline, list(collection.entries)))
    return collection if target is None else _with(collection, collection.baseline, target)


def _with(collection: Collection, baseline: str, derived: Target | None) -> Collection:
    old = collection.target
    is_given = derived is not None and derived.is_given
    target = old if old is not None and old.is_given and not is_given else derived
    names = list(dict.fromkeys(entry.variant for entry in collection.entries))
    title = collection.title if collection.text else _title(names, baseline)
    return Collection(title, baseline, target, collection.entries, collection.rates, collection.source, collection.text)


def _of_runs(runs: Sequence[Run]) -> Collection:
    groups: list[list[Run]] = []
    for run in runs:
        own = next((group for group in groups if all(_is_the_same_but_for_the_seed(each, run) for each in group)), None)
        if own is None:
            groups.append([run])
        else:
            own.append(run)
    names = _names(groups)
    entries = [
        Entry(_ALL, name, None, run.config.seed, run.folder, run)
        for group, name in zip(groups, names, strict=True)
        for run in group
    ]
    baseline = names[0]
    return Collection(_title(names, baseline), baseline, derived_target(baseline, entries), tuple(entries))


def _title(names: Sequence[str], baseline: str) -> str:
    """Return a title that says what is compared with what."""
    others = [name for name in names if name != baseline]
    if not others:
        return baseline
    if len(others) > _MOST_NAMED:
        return f"{len(others)} variants against {baseline}"
    return (
        f"{', '.join(others[:-1])} and {others[-1]} against {baseline}" if others[1:] else f"{others[0]} against {baseline}"
    )


def _is_the_same_but_for_the_seed(one: Run, other: Run) -> bool:
    return (
        one.num_workers == other.num_workers
        and one.is_simulated == other.is_simulated
        and one.config.seed != other.config.seed
        and not differing_keys([one.config, other.config])
    )


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return the common beginning of the folder names in a group; if that is empty, the name of the first run."""
    names: list[str] = []
    for group in groups:
        shared = _beginning([run.name for run in group])
        if len(group) > 1:
            shared = re.sub(r"(?:[-_. ]+|^)(?:s|seed)?[-_. ]*\d*$", "", shared)  # remnants of the seeds
        name = shared or group[0].name
        number = 2
        while name in names:
            name, number = f"{shared or group[0].name} ({number})", number + 1
        names.append(name)
    return names


def _beginning(names: Sequence[str]) -> str:
    """Return the common beginning of all names."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same)
