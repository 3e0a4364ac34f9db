"""Settings in which the runs of a comparison differ, from the configurations that they ran with. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hvd_async.config import RunConfig

# Settings that differ in every run.
_OF_EACH_RUN = ("output", "seed")


def differing_keys(configs: Sequence[RunConfig]) -> list[str]:
    """Return the dotted keys whose values differ among `configs`, without the seed and the output folder."""
    trees = [leaves(config) for config in configs]
    names = dict.fromkeys(name for tree in trees for name in tree)
    return [name for name in names if any(tree.get(name) != trees[0].get(name) for tree in trees)]


def leaves(config: RunConfig) -> dict[str, Any]:
    """Return the values of `config` by dotted keys."""
    tree = config.model_dump()
    for name in _OF_EACH_RUN:
        del tree[name]
    return dict(_leaves(tree, ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        is_section = isinstance(value, dict) and all(isinstance(name, str) for name in value) and value
        found += _leaves(value, f"{prefix}{key}.") if is_section else [(f"{prefix}{key}", value)]
    return found
