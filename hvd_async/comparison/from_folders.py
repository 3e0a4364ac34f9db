"""Comparisons of run folders that no suite made."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Sequence

from hvd_async.comparison.collection import Collection, Entry
from hvd_async.comparison.differences import differing_keys
from hvd_async.comparison.plan import derived_target, has_plan, read_collection, target_of
from hvd_async.comparison.runs import Run, read_run
from hvd_async.comparison.target import WantedTarget
from hvd_async.errors import ConfigError
from hvd_async.system.words import and_listed

_ALL = "all"
# Number of variants that a title names.
_MOST_NAMED = 3


def gather(folders: Sequence[pathlib.Path], baseline: str | None, wanted: WantedTarget | None) -> Collection:
    """Return the comparison of the runs in `folders`, or the comparison in the single folder given.

    Runs that differ only in their seeds are one variant, named after their folders. `baseline`: the name of a variant, by
    default that of the first run. `wanted`: the target, by default that of the comparison, or one derived from the runs.
    Raises `DataError` for a folder without a run that has ended and for runs that disagree on their metrics, and
    `ConfigError` for an unknown baseline or a target that no run has measured.
    """
    if len(folders) == 1 and has_plan(folders[0]):
        collection = read_collection(folders[0], wanted)
    else:
        collection = _of_runs([read_run(folder) for folder in folders], wanted)
    return collection if baseline is None else _against(collection, baseline)


def _against(collection: Collection, baseline: str) -> Collection:
    """Return the comparison with another baseline, from which a derived target follows."""
    names = list(dict.fromkeys(entry.variant for entry in collection.entries))
    if baseline not in names:
        raise ConfigError(f"--baseline: got {baseline!r}, expected one of {', '.join(names)}")
    is_given = collection.target is not None and collection.target.is_given
    target = collection.target if is_given else derived_target(baseline, collection.entries)
    title = collection.title if collection.text else _title(names, baseline)
    return dataclasses.replace(collection, title=title, baseline=baseline, target=target)


def _of_runs(runs: Sequence[Run], wanted: WantedTarget | None) -> Collection:
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
    return Collection(_title(names, baseline), baseline, target_of(wanted, baseline, entries), tuple(entries))


def _title(names: Sequence[str], baseline: str) -> str:
    """Return a title that says what is compared with what."""
    others = [name for name in names if name != baseline]
    if not others:
        return baseline
    if len(others) > _MOST_NAMED:
        return f"{len(others)} variants against {baseline}"
    return f"{and_listed(others)} against {baseline}"


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
