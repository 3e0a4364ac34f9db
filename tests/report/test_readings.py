"""The sentence of each figure, with the numbers that the figure shows."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import pytest

from hvd_async.comparison.collection import Collection, Entry
from hvd_async.comparison.results import Row, results
from hvd_async.report import readings
from tests.comparison.made import LOSS, TARGET, entry, run, write_run


def test_few_variants_are_named_and_of_many_the_ends() -> None:
    assert readings.of_rates({"a": 0.1, "b": 0.01}) == "The loss is lowest at 0.1 with a; 0.01 with b."
    assert readings.of_shares({"a": 0.5, "b": 0.012}).endswith("time: 50.0 % with a; 1.2 % with b.")
    many = {"a": 30, "b": 5, "c": 70, "d": 40, "e": 2000}
    assert readings.of_timeline(many) == "Steps finished in equal time: from 5 with b to 2,000 with e."


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert readings.of_rates({}) == ""


@pytest.mark.parametrize(
    ("means", "shown"), [({"a": 0.754}, "0.75 with a"), ({"a": 1.0, "b": 2.996}, "1.00 with a; 3.00 with b")]
)
def test_staleness_is_that_of_the_title(means: dict[str, float], shown: str) -> None:
    assert readings.of_staleness(means).endswith(f" is {shown}.")


@pytest.fixture
def rows_of(tmp_path: pathlib.Path) -> Callable[..., list[Row]]:
    """Return a function that writes the runs of entries, and computes their rows."""

    def make(*entries: Entry) -> list[Row]:
        placed = []
        for number, each in enumerate(entries):
            found = None if each.run is None else dataclasses.replace(each.run, folder=tmp_path / str(number))
            if found is not None:
                write_run(found)
            placed.append(dataclasses.replace(each, run=found))
        return results(Collection("made", "base", TARGET, tuple(placed), ()))

    return make


def test_variants_with_runs_that_failed_do_not_win(rows_of: Callable[..., list[Row]]) -> None:
    good, bad = run((10.0, 4.0), (20.0, 2.0), (40.0, 1.0)), run((5.0, 4.0), (10.0, 2.0), (20.0, 0.5))
    entries = [entry("base", 1, good), entry("base", 2, good), entry("half", 1, bad), entry("half", 2, None)]
    text = readings.of_curves(rows_of(*entries), TARGET, LOSS)
    assert text == f"base ends best, with {LOSS.text(1.0)}; the first at the target is base, after 15.0 s."
    whole = [entry("base", 1, good), entry("fast", 1, bad)]
    text = readings.of_curves(rows_of(*whole), TARGET, LOSS)
    assert text.startswith(
        f"fast ends best, with {LOSS.text(0.5)}; the baseline, base, ends with {LOSS.text(1.0)}; the first at"
    )


def test_a_slower_variant_is_said_to_be_left_of_1(rows_of: Callable[..., list[Row]]) -> None:
    good, late = run((10.0, 4.0), (20.0, 2.0)), run((20.0, 4.0), (40.0, 2.0))
    row = rows_of(entry("base", 1, good), entry("late", 1, late))[1]
    text = readings.of_speed_ups({"even": [row], "uneven": [row]})
    assert (
        "left of it later" in text and "0.50 times as fast with late (even); 0.50 times as fast with late (uneven)." in text
    )


def test_scores_that_are_shown_alike_are_a_tie(rows_of: Callable[..., list[Row]]) -> None:
    good, alike, bad = (run((10.0, 4.0), (20.0, end)) for end in (1.0, 1.0001, 2.0))
    entries = [entry("base", 1, good), entry("alike", 1, alike), entry("bad", 1, bad)]
    text = readings.of_curves(rows_of(*entries), None, LOSS)
    assert text == f"base and alike end best, with {LOSS.text(1.0)}."
    assert readings.of_curves(rows_of(*entries[:2]), None, LOSS) == f"All end with {LOSS.text(1.0)}."
