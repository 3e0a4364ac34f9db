"""Small stores and arrivals for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hvd_async.config import OptimizerConfig, ScheduleConfig, StrategyConfig
from hvd_async.store.arrival import Arrival
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.shards.shard import Shard
from hvd_async.store.staleness import needs_base_parameters
from hvd_async.store.wire.layout import NUM_PROVISIONAL, StoreMemory

CONSTANT = ScheduleConfig(kind="constant")


def asynchronous(**settings: Any) -> StrategyConfig:
    """Return an asynchronous strategy with `settings`, by default without provisional parameters."""
    return StrategyConfig(**{"kind": "async", "provisional": False, **settings})


def sgd(**settings: Any) -> OptimizerConfig:
    """Return plain SGD at a constant rate of 1, unless `settings` say otherwise: parameters - gradient, exact on small
    integers.
    """
    return OptimizerConfig(**{"kind": "sgd", "learning_rate": 1.0, "schedule": CONSTANT, **settings})


def make_store(
    strategy: StrategyConfig,
    *,
    num_workers: int = 1,
    optimizer: OptimizerConfig | None = None,
    size: int = 4,
    memory: StoreMemory | None = None,
    initial: torch.Tensor | None = None,
    provisional: Sequence[torch.Tensor] = (),
) -> ParameterStore:
    """Return a store whose parameters, [size], begin as `initial` or at zero. If `memory` is given, versions are made
    in it, and so are provisional parameters, unless `provisional` gives vectors for them.
    """
    optimizer = optimizer or sgd()
    if memory is not None:
        size = memory.layout.num_elements
        buffers = [memory.vector(memory.layout.published_offset(n)) for n in range(memory.layout.num_buffers)]
        provisional = provisional or provisional_vectors(memory)
    else:
        size = size if initial is None else initial.numel()
        buffers = [torch.zeros(size) if initial is None else initial.clone()]
    shard = make_shard(strategy, optimizer, size, buffers, provisional)
    return ParameterStore(shard, size, optimizer, strategy, num_workers)


def make_shard(
    strategy: StrategyConfig,
    optimizer: OptimizerConfig,
    size: int = 4,
    buffers: Sequence[torch.Tensor] | None = None,
    provisional: Sequence[torch.Tensor] = (),
) -> Shard:
    """Return a shard whose parameters begin as `buffers[0]`, or at zero."""
    keeps_bases = needs_base_parameters(strategy)
    return Shard(buffers or [torch.zeros(size)], optimizer, provisional=provisional, keeps_bases=keeps_bases)


def provisional_vectors(memory: StoreMemory) -> list[torch.Tensor]:
    """Return the vectors of `memory` for provisional parameters."""
    return [memory.vector(memory.layout.provisional_offset(number)) for number in range(memory.layout.num_provisional)]


def num_provisional(strategy: StrategyConfig) -> int:
    """Return the number of vectors for provisional parameters that a block needs."""
    return NUM_PROVISIONAL if strategy.has_provisional else 0


def arrival(
    batch: int, *, worker: int = 0, base_version: int = 0, weight: float = 1, loss: float = 0.0, provisional: int = 0
) -> Arrival:
    """Return an arrival of weight 1, unless `weight` says otherwise."""
    return Arrival(worker, batch, base_version, weight, loss, provisional=provisional)


def accept(store: ParameterStore, which: Arrival, value: float = 1.0) -> None:
    """Give `store` a gradient whose elements are all `value`."""
    store.accept([which], Gradient.measure(torch.full_like(store.parameters, value)))


def value_of(batch: int) -> float:
    """Return a recognisable value for `batch`, exact in any sum of a few thousand."""
    return (batch * 7919 % 13 - 6) / 8
