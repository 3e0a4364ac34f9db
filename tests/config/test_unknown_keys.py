from __future__ import annotations

import re

import pytest

from hvd_async.config import RunConfig, parse_config
from hvd_async.config.unknown_keys import _OF_OTHER_TOOLS, _keys
from hvd_async.errors import ConfigError
from hvd_async.system.nearest import meant, nearest


@pytest.mark.parametrize(
    ("word", "names", "expected"),
    [
        ("sead", ["output", "seed"], "did you mean 'seed'?"),
        ("knid", ["kind", "width"], "did you mean 'kind'?"),
        ("max_epochs", ["epochs", "weight"], "did you mean 'epochs'?"),
        ("workers", ["delay", "min_workers", "max_workers"], "did you mean 'min_workers' or 'max_workers'?"),
        ("a", ["a_b", "a_c", "a_d", "a_e"], "did you mean 'a_b', 'a_c' or 'a_d'?"),
        ("steps", ["store", "strategy"], ""),
        ("name", ["samples"], ""),
        ("warmup", ["groups"], ""),
        ("", ["groups"], ""),
        ("_", ["groups"], ""),
        ("x", [], ""),
    ],
)
def test_a_word_is_suggested_if_it_is_spelled_alike_or_has_the_same_words(
    word: str, names: list[str], expected: str
) -> None:
    assert meant(word, names) == expected


def test_words_may_be_joined_by_dashes() -> None:
    assert nearest("--worker-per-nodes", ["--worker-timeout", "--workers-per-node"]) == ["--workers-per-node"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("epochs", "write training.epochs"),
        ("task.beam", "write task.decoding.beam"),
        ("device", "write store.device or training.device"),
        ("lr", "write optimizer.learning_rate"),
        ("training.max-steps", "write training.updates"),
        ("task.d_model", "write task.model.width"),
        ("strategy.provisionl", "did you mean 'provisional'?"),
        ("push.xyzzy", "expected one of dtype, error_feedback, keep, node_sum, overlap"),
        ("training.dtype", "write training.precision"),
        ("gpus", "the number of workers is given to `hvd-async launch --workers`, or as simulation.workers to `simulate`"),
    ],
)
def test_an_unknown_key_is_answered_with_the_key_that_was_meant(key: str, expected: str) -> None:
    *sections, name = key.split(".")
    tree: dict[str, object] = {"output": "runs/a", "task": {"factory": "a:b"}, "training": {"epochs": 1}}
    if key.startswith("task.") or key == "task":
        tree["task"] = {"data": {"folder": "."}}
    below = tree
    for section in sections:
        below = below.setdefault(section, {})  # type: ignore[assignment]  # sections are maps
    below[name] = 1
    with pytest.raises(ConfigError) as raised:
        parse_config(tree, "run.yaml")
    assert f"run.yaml: {key}: unknown key; {expected}" in str(raised.value).splitlines()


def test_keys_of_translation_are_not_suggested_to_other_tasks() -> None:
    tree = {"output": "runs/a", "task": {"factory": "a:b", "layers": 2}, "training": {"epochs": 1}}
    with pytest.raises(ConfigError, match=r"task\.layers: unknown key; expected one of factory, .* stand in task\.options$"):
        parse_config(tree, "run.yaml")


def test_each_word_of_other_tools_leads_to_one_key_that_there_is() -> None:
    ours = set(_keys(RunConfig))
    assert set(_OF_OTHER_TOOLS) <= ours
    words = [word for words in _OF_OTHER_TOOLS.values() for word in words.split()]
    assert len(words) == len(set(words)) > 100
    for key, of_key in _OF_OTHER_TOOLS.items():
        for word in of_key.split():
            with pytest.raises(ConfigError, match=rf"{word}: unknown key; write {re.escape(key)}$"):
                parse_config(
                    {"output": "a", "task": {"data": {"folder": "."}}, "training": {"epochs": 1}, word: 1}, "run.yaml"
                )
