"""The sentence of each figure, with the numbers that the figure shows."""

from __future__ import annotations

import pytest

from hvd_async.report import readings


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
