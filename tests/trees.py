"""Configurations as plain data, for tests that change keys of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_TRANSLATION = (
    *("data", "vocabulary", "model", "batching", "decoding"),
    *("init_from", "label_smoothing", "metrics", "metric_sentences", "samples"),
)


def changed(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `tree` with the keys of each section in `changes`; keys of the task of translation stand for themselves."""
    result = {**tree, "task": dict(tree.get("task", {}))}
    for key, value in changes.items():
        place = result["task"] if key in _OF_TRANSLATION else result
        old = place.get(key, {})
        place[key] = {**old, **value} if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return result


def replaced(tree: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return `tree` with `sections` in place of its own; those of the task of translation stand for themselves."""
    own = {key: value for key, value in sections.items() if key in _OF_TRANSLATION}
    rest = {key: value for key, value in sections.items() if key not in _OF_TRANSLATION}
    task = {"task": {**tree.get("task", {}), **own}} if own or "task" in tree else {}
    return {**tree, **task, **rest}
