"""Validation by epochs: how many versions that is, in every strategy, in real and in simulated runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hvd_async.config import parse_config
from hvd_async.errors import ConfigError
from hvd_async.runs.validation_pace import in_versions
from hvd_async.tasks.translation.batching import BatchPlan


def config(epochs: float, **strategy: Any) -> Any:
    tree = {"output": "x", "task": {"data": {"folder": "x"}}, "training": {"epochs": 3}, "strategy": strategy}
    return parse_config({**tree, "validation": {"every_epochs": epochs}}, source="test")


def task(per_epoch: int | None) -> Any:
    return SimpleNamespace(epoch_of=lambda index: 0 if per_epoch is None else index // per_epoch)


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "workers", "strategy", "every"),
    [
        (1.0, 25, 2, {"kind": "horovod"}, 13),
        (1.0, 26, 2, {"kind": "async"}, 13),
        (1.0, 25, 2, {"kind": "async", "arrivals_per_update": 1}, 25),
        (2.0, 25, 4, {"kind": "async"}, 13),
        (0.5, 24, 4, {"kind": "async"}, 3),
        (0.01, 7, 4, {"kind": "async"}, 1),
        (1.0, 1, 1, {"kind": "single"}, 1),
        (1.0, 1_000_003, 8, {"kind": "ddp"}, 125_001),
    ],
)
def test_epochs_are_the_versions_that_their_batches_make(
    epochs: float, per_epoch: int, workers: int, strategy: dict[str, Any], every: int
) -> None:
    asked = config(epochs, **strategy)
    found = in_versions(asked, task(per_epoch), workers)
    assert (found.validation.every, found.validation.every_epochs) == (every, None)
    assert asked.validation.every_epochs == epochs and in_versions(found, task(None), workers) == found


def test_an_epoch_of_text_has_the_batches_of_its_plan() -> None:
    lengths, asked = np.arange(1, 300), config(1.0, kind="async", arrivals_per_update=1)
    plan: Any = BatchPlan(lengths, lengths, asked.translation.batching.model_copy(update={"tokens": 400}), seed=1)
    assert in_versions(asked, plan, 4).validation.every == plan.num_batches(1) > 50


def test_a_stream_has_no_epochs() -> None:
    with pytest.raises(ConfigError, match=r"every_epochs: got 1, but the data have no epochs; expected validation\.every"):
        in_versions(config(1.0, kind="async"), task(None), 2)
