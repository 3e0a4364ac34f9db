"""Small stores and arrivals for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch

from hvd_async.config import OptimizerConfig, ScheduleConfig, StrategyConfig
from hvd_async.store import Arrival, ParameterStore

CONSTANT = ScheduleConfig(kind="constant")


def asynchronous(**settings: Any) -> StrategyConfig:
    """An asynchronous strategy with `settings`."""
    return StrategyConfig(kind="async", **settings)


def sgd(**settings: Any) -> OptimizerConfig:
    """Plain SGD at a constant rate of 1, unless `settings` say otherwise: parameters - gradient, exact on small integers."""
    return OptimizerConfig(**{"kind": "sgd", "learning_rate": 1.0, "schedule": CONSTANT, **settings})


def make_store(
    strategy: StrategyConfig, *, num_workers: int = 1, optimizer: OptimizerConfig | None = None, size: int = 4
) -> ParameterStore:
    """A store whose parameters, [size], begin at zero."""
    return ParameterStore(torch.zeros(size), optimizer or sgd(), strategy, num_workers)


def arrival(batch: int, *, worker: int = 0, base_version: int = 0, tokens: int = 1, loss: float = 0.0) -> Arrival:
    """An arrival of one target token, unless `tokens` says otherwise."""
    return Arrival(worker, batch, base_version, tokens, loss)


def accept(store: ParameterStore, which: Arrival, value: float = 1.0) -> None:
    """Give `store` a gradient whose elements are all `value`."""
    store.accept([which], torch.full_like(store.parameters, value))
