"""Simulated runs of the toy, in this process."""

from __future__ import annotations

import pathlib
from typing import Any

from hvd_async.config import RunConfig, parse_config
from hvd_async.simulation.simulate import SimulateOptions, simulate
from tests.mpi.toy import Settings, ToyTask, make_config

UNEVEN = {"spread": "log_normal", "deviation": 0.5, "slow_workers": {0: 2.0}, "pause_probability": 0.1, "pause_seconds": 0.3}


def parse(output: pathlib.Path, **sections: Any) -> RunConfig:
    """Return a configuration of the toy; `seed` is not a section."""
    seed = sections.pop("seed", 1)
    return parse_config({**make_config(output, **sections), "seed": seed}, source="toy")


def run(
    output: pathlib.Path,
    num_batches: int | None = 40,
    point_weight: float = 1.0,
    dropout: float = 0.2,
    device: str = "cpu",
    has_accuracy: bool = False,
    **sections: Any,
) -> dict[str, Any]:
    """Simulate the toy, and return its summary."""
    config = parse(output, **sections)
    settings = Settings({}, num_batches=num_batches, dropout=dropout, point_weight=point_weight, has_accuracy=has_accuracy)
    return simulate(config, lambda _: ToyTask(settings, 0), SimulateOptions(device=device))
