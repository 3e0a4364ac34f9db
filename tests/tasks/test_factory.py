"""Tasks of users, made by a function that the configuration names."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest

from hvd_async.config import RunConfig, parse_config
from hvd_async.errors import ConfigError
from hvd_async.tasks.registry import estimate, make_task

BLOBS = "tests.tasks.blobs:make_task"


def configured(factory: str, **options: Any) -> RunConfig:
    tree = {"output": "x", "task": {"factory": factory, "options": options}, "training": {"epochs": 2}}
    return parse_config(tree, source="test")


def test_a_factory_gets_the_configuration_and_its_options() -> None:
    task = make_task(configured(BLOBS, size=70, batch_size=20))
    assert task.num_batches() == 8
    assert [metric.name for metric in task.metrics] == ["loss", "accuracy", "perplexity"]


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (
            "tests.tasks.nowhere:make",
            {},
            "task.factory: got .*, whose module cannot be imported: ModuleNotFoundError: No mod",
        ),
        ("tests.tasks.blobs:nothing", {}, "task.factory: got .*, whose module has no function 'nothing'"),
        ("tests.tasks.blobs:NOT_A_FUNCTION", {}, "whose module has no function 'NOT_A_FUNCTION'"),
        ("tests.tasks.blobs:make_nothing", {}, "make_nothing returned int, expected a task; it lacks batch, build_model, "),
        ("tests.tasks.blobs:make_trouble", {}, r"make_trouble failed: OSError: no such disk \(.*blobs.py:\d+\)"),
        (BLOBS, {"colour": 3}, "task.options: .* does not take them: got an unexpected keyword argument 'colour'"),
        (BLOBS, {"batch_size": 0}, "make_task failed: ConfigError: batch_size: got 0, expected a whole number >= 1"),
    ],
)
def test_what_is_wrong_with_a_factory_is_one_line_with_the_place(
    factory: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_task(configured(factory, **options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["options_that_may_change", "options_alike"])
def test_an_option_that_the_function_does_not_take_is_refused_wherever_it_is_named(key: str) -> None:
    tree = {"output": "x", "task": {"factory": BLOBS, key: ["size", "colour"]}, "training": {"epochs": 2}}
    with pytest.raises(ConfigError, match=rf"task.{key}: got 'colour', expected options that {BLOBS} takes: \w+, "):
        make_task(parse_config(tree, source="test"))


def test_errors_in_a_module_name_the_line(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_a.py").write_text("x = 1\nraise ValueError('bad')\n")
    (tmp_path / "mine_b.py").write_text("x = 1\ndef broken(:\n")
    with pytest.raises(
        ConfigError, match=rf"cannot be imported: ValueError: bad \(.*mine_a.py:2\); .* in {os.getcwd()} and"
    ):
        make_task(configured("mine_a:make"))
    with pytest.raises(ConfigError, match=r"cannot be imported: SyntaxError: .* \(.*mine_b.py:2\)"):
        make_task(configured("mine_b:make"))


@pytest.mark.parametrize("factory", ["", "module", ":name", "a b:c", "a:b.c", "os:system;x"])
def test_a_place_that_is_none_is_refused_with_the_configuration(factory: str) -> None:
    with pytest.raises(ConfigError, match=r"task\.factory: got .*, expected module:function"):
        configured(factory)


def test_a_task_of_another_kind_is_refused_where_only_translation_makes_sense() -> None:
    with pytest.raises(ConfigError, match=r"task\.kind: got factory, expected translation"):
        _ = configured(BLOBS).translation
    with pytest.raises(ConfigError, match=r"simulation\.parameters, simulation\.weight: got None and None, expected both"):
        estimate(configured(BLOBS))
