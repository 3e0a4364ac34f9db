"""Flags become options, or an error of one line."""

from __future__ import annotations

from typing import Any

import pytest

from hvd_async.benchmarks.options import Options, make_options, num_elements, parse_sizes
from hvd_async.errors import ConfigError

TAKES = frozenset({"sizes", "workers", "repeats", "threads", "seconds"})


def test_options_that_are_not_given_keep_their_defaults() -> None:
    given = {"sizes": "0.5,2", "workers": None, "repeats": 3}
    options = make_options("test", Options(workers=5), TAKES, given)
    assert options == Options(sizes=(0.5, 2.0), workers=5, repeats=3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sizes": "1,x"}, "--sizes: got 'x'"),
        ({"sizes": ""}, "--sizes: got ''"),
        ({"sizes": "0"}, "--sizes: got '0'"),
        ({"sizes": "nan"}, "--sizes: got 'nan'"),
        ({"sizes": ",".join("1" * 11)}, "--sizes: got 11 sizes"),
        ({"workers": 0}, "--workers: got 0"),
        ({"repeats": -1}, "--repeats: got -1"),
        ({"threads": 0}, "--threads: got 0"),
        ({"seconds": 0.0}, "--seconds: got 0"),
        ({"seconds": float("nan")}, "--seconds: got nan"),
        ({"seconds": float("inf")}, "--seconds: got inf"),
        ({"step_seconds": 0.1}, "--step-seconds: bench test does not take it"),
    ],
)
def test_a_wrong_flag_is_reported_in_one_line(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_options("test", Options(), TAKES, given)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_options_are_passed_to_the_ranks_as_flags() -> None:
    options = Options(sizes=(1.0, 0.25), repeats=4)
    assert options.arguments(frozenset({"sizes", "repeats"})) == ("--repeats", "4", "--sizes", "1,0.25")


def test_sizes_are_in_millions() -> None:
    assert [num_elements(size) for size in parse_sizes("1,0.001,25")] == [1_000_000, 1000, 25_000_000]
