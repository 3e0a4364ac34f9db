"""Pushes that a worker can write into the memory of a GPU by itself."""

from __future__ import annotations

from typing import Any

import pytest

from hvd_async.config import PushConfig


@pytest.mark.parametrize(
    ("push", "expected"),
    [
        ({}, True),
        ({"dtype": "bfloat16"}, True),
        ({"overlap": True}, True),
        ({"dtype": "bfloat16", "error_feedback": True}, False),
        ({"keep": 0.1, "error_feedback": True}, False),
        ({"node_sum": True}, False),
    ],
)
def test_a_whole_push_is_one_vector_of_one_worker(push: dict[str, Any], expected: bool) -> None:
    assert PushConfig(**push).is_whole is expected
