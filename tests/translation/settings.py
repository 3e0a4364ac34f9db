"""Configurations of tiny runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hvd_async.config import RunConfig, parse_config
from tests.trees import changed


def make_config(folder: Path, **changes: Any) -> RunConfig:
    """Return the configuration of a tiny model on the text in `folder`; `changes` replace keys within sections."""
    tree: dict[str, Any] = {
        "output": str(folder / "run"),
        "task": {
            "data": {"folder": str(folder)},
            "vocabulary": {"size": 200},
            "model": {"encoder_layers": 1, "decoder_layers": 1, "width": 16, "feed_forward": 32, "heads": 2},
            "batching": {"tokens": 300},
            "decoding": {"max_length_ratio": 0.5},
        },
        "training": {"epochs": 1},
    }
    return parse_config(changed(tree, changes), source="test")
