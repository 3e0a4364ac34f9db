"""A configuration as one flat table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hvd_async.config.run import RunConfig


def leaves(config: RunConfig) -> dict[str, Any]:
    """Return the values of `config` by dotted keys, such as `strategy.kind`."""
    return dict(_leaves(config.model_dump(), ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        is_section = isinstance(value, dict) and all(isinstance(name, str) for name in value) and value
        found += _leaves(value, f"{prefix}{key}.") if is_section else [(f"{prefix}{key}", value)]
    return found
