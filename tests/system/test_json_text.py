"""Numbers in JSON."""

from __future__ import annotations

import json
import math

import pytest

from hvd_async.system.json_text import plain_number


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (20, "20"),
        (20.0, "20"),
        (0.0, "0"),
        (2.5, "2.5"),
        (2.0**53, "9007199254740992"),
        (1e300, "1e+300"),
        (math.inf, "Infinity"),
    ],
)
def test_only_whole_numbers_that_are_exact_are_written_without_a_point(number: float, text: str) -> None:
    assert json.dumps(plain_number(number)) == text
