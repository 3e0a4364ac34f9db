"""The description of emulation in words."""

from __future__ import annotations

from typing import Any

import pytest

from hvd_async.config import EmulationConfig
from hvd_async.report.emulated_workers import describe_emulation


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "steps as long as the real ones"),
        ({"slow_workers": {0: 2.0}}, "steps as long as the real ones, worker 0 takes 2 times as long"),
        (
            {"seconds": 0.25, "spread": "log_normal", "deviation": 0.3, "slow_workers": {2: 1.5, 0: 1.5, 1: 3.0, 3: 1.0}},
            "steps of 0.25 s, log-normal spread 0.3, workers 0 and 2 take 1.5 times as long, worker 1 takes 3 times as long",
        ),
        (
            {"seconds": 1.0, "seconds_per_weight": 0.001, "pause_probability": 0.01, "pause_seconds": 2.0},
            "steps of 1 s, 0.001 s more for each image, a pause of 2 s in 1 % of the steps",
        ),
        ({"trace": "/home/x/steps.jsonl"}, "steps as long as in the trace steps.jsonl"),
        ({"seconds": 1.0, "spread": "gamma", "deviation": 0.5}, "steps of 1 s, gamma spread 0.5"),
    ],
)
def test_emulation_is_described_in_words(fields: dict[str, Any], text: str) -> None:
    assert describe_emulation(EmulationConfig(**fields), "images") == text


def test_a_simulation_has_its_own_default_length() -> None:
    assert describe_emulation(EmulationConfig(), "images", is_simulated=True) == "steps of 0.1 s"
