"""Settings in which the runs of a comparison differ, from the configurations that they ran with. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hvd_async.config import RunConfig, leaves

# Settings that differ in every run.
OF_EACH_RUN = ("output", "seed")


def differing_keys(configs: Sequence[RunConfig]) -> list[str]:
    """Return the dotted keys whose values differ among `configs`, without the seed and the output folder."""
    trees = [own_leaves(config) for config in configs]
    names = dict.fromkeys(name for tree in trees for name in tree)
    return [name for name in names if any(tree.get(name) != trees[0].get(name) for tree in trees)]


def own_leaves(config: RunConfig) -> dict[str, Any]:
    """Return the values of `config` by dotted keys, without the seed and the output folder."""
    return {key: value for key, value in leaves(config).items() if key not in OF_EACH_RUN}
