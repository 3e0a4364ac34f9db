"""Differences that make runs hard to compare are at the top of the report."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import pytest

from hvd_async.comparison.collection import Collection
from hvd_async.comparison.results import results
from hvd_async.comparison.runs import Run
from hvd_async.comparison.target import Target
from hvd_async.config import ScriptConfig
from hvd_async.report import run_settings
from hvd_async.report.contents import contents
from hvd_async.report.document import Text
from hvd_async.report.writers.terminal import text_of
from tests.comparison.made import CONFIG, LOSS, arrival, entry, run, write_run


def warnings_of(folder: pathlib.Path, *runs: Run) -> list[str]:
    for made in runs:
        write_run(made, [{"event": "start", "data_fingerprint": made.data_fingerprint}, arrival(0, 4.0, 4.0)])
    entries = tuple(entry(made.name, 1, made) for made in runs)
    collection = Collection("title", runs[0].name, Target(LOSS, 3.0), entries)
    document = contents(collection, results(collection), folder, None)
    return [block.text for block in document.lead if isinstance(block, Text)]


def one(folder: pathlib.Path, name: str, data: str, when: str = "after") -> Run:
    config = CONFIG.model_copy(update={"validation": CONFIG.validation.model_copy(update={"when": when, "every": 5})})
    return run((10.0, 4.0), (20.0, 2.0), folder=folder / name, data_fingerprint=data, config=config)


def test_runs_on_equal_terms_need_no_warning(tmp_path: pathlib.Path) -> None:
    warnings = warnings_of(tmp_path, one(tmp_path, "a", "text"), one(tmp_path, "b", "text"))
    assert not any("same data" in line or "while they trained" in line for line in warnings)


def test_each_seed_has_a_preparation_of_its_own(tmp_path: pathlib.Path) -> None:
    other = one(tmp_path, "b", "another")
    other = dataclasses.replace(other, config=other.config.model_copy(update={"seed": 2}))
    warnings = warnings_of(tmp_path, one(tmp_path, "a", "text"), other)
    assert not any("same data" in line for line in warnings)


def test_different_training_data_are_reported(tmp_path: pathlib.Path) -> None:
    warnings = warnings_of(tmp_path, one(tmp_path, "a", "text"), one(tmp_path, "b", "another"))
    assert any(line.startswith("The runs were not trained on the same data") for line in warnings)


def test_runs_that_measure_something_else_are_reported(tmp_path: pathlib.Path) -> None:
    runs = [one(tmp_path, "a", "text"), one(tmp_path, "b", "text")]
    task = runs[1].config.translation.model_copy(update={"metric_sentences": 7, "label_smoothing": 0.2})
    runs[1] = dataclasses.replace(runs[1], config=runs[1].config.model_copy(update={"task": task}))
    wanted = "The runs measure different things (task.metric_sentences), so their scores are not comparable."
    assert wanted in warnings_of(tmp_path, *runs)
    moved = runs[0].config.translation.data.model_copy(update={"folder": "elsewhere"})
    task = runs[0].config.translation.model_copy(update={"data": moved, "init_from": "elsewhere"})
    elsewhere = dataclasses.replace(runs[0], config=runs[0].config.model_copy(update={"task": task}))
    assert not any("different things" in line for line in warnings_of(tmp_path, runs[0], elsewhere))
    script = ScriptConfig(kind="script", script="train.py")
    runs[1] = dataclasses.replace(runs[1], config=runs[1].config.model_copy(update={"task": script}))
    assert wanted.replace("task.metric_sentences", "task.kind") in warnings_of(tmp_path, *runs)


def test_the_terminal_has_the_warnings_too(tmp_path: pathlib.Path) -> None:
    runs = [one(tmp_path, "a", "text"), one(tmp_path, "b", "another")]
    warnings_of(tmp_path, *runs)  # which writes them
    entries = tuple(entry(made.name, 1, made) for made in runs)
    assert "The runs were not trained on the same data" in text_of(Collection("title", "a", Target(LOSS, 3.0), entries))


def test_measuring_during_training_is_reported(tmp_path: pathlib.Path) -> None:
    warnings = warnings_of(tmp_path, one(tmp_path, "a", "text"), one(tmp_path, "b", "text", "during"))
    assert any(line.startswith("Some runs were measured while they trained") for line in warnings)


def lead_of(folder: pathlib.Path, rates: tuple[float, ...], *variants: str) -> str:
    for name in variants:
        write_run(one(folder, name, "text"), [{"event": "start", "data_fingerprint": "text"}, arrival(0, 4.0, 4.0)])
    entries = tuple(entry(name, 1, one(folder, name, "text")) for name in variants)
    collection = Collection("title", variants[0], Target(LOSS, 3.0, is_given=False), entries, rates=rates)
    lead = contents(collection, results(collection), folder, None).lead
    text = "\n".join(block.text for block in lead if isinstance(block, Text))
    assert all((words in text) == (words in text_of(collection)) for words in (_UNTUNED, _FOUND))
    return text


_UNTUNED, _FOUND = "was set, not chosen among several", "The target was not chosen beforehand."


def test_what_was_not_tuned_or_chosen_beforehand_is_said_where_something_is_compared(tmp_path: pathlib.Path) -> None:
    both = lead_of(tmp_path / "both", (), "a", "b")
    assert _UNTUNED in both and _FOUND in both
    assert _UNTUNED in lead_of(tmp_path / "one rate", (0.1,), "a", "b")
    assert _UNTUNED not in lead_of(tmp_path / "rates", (0.1, 0.2), "a", "b")
    alone = lead_of(tmp_path / "alone", (), "a")
    assert _UNTUNED not in alone and _FOUND not in alone


@pytest.mark.parametrize(
    ("trees", "common"),
    [
        ([{"a": 1, "b": 2}, {"a": 1, "b": 3}], {"a": 1}),
        ([{"lr": 3, "lr.x": 1}, {"lr": 3, "lr.x": 2}], {"lr": 3}),  # options of a user, whose names may have dots
        ([{"a": {"b": {"c": 1}}, "d": {}}, {"a": {"b": {"c": 2}}, "d": {}}], {}),
        ([{"a": {"b": 1, "c": None}}, {"a": {"b": 1, "c": None}}], {"a": {"b": 1, "c": None}}),
        ([{"a": None}, {}], {}),
        ([{"a": {"b": 1}}, {"a": 1}], {}),
    ],
)
def test_runs_share_what_is_equal_at_the_same_place(trees: list[dict[str, Any]], common: dict[str, Any]) -> None:
    assert run_settings._common(trees) == common == run_settings._common(trees[::-1])
