"""A shard whose vectors are in a block of memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hvd_async.config import OptimizerConfig, StrategyConfig
from hvd_async.store.optimizers.factory import state_names
from hvd_async.store.shards.shard import OTHER_SUM, KeptMemory, Shard
from hvd_async.store.shards.shard_group import place_in_block
from hvd_async.store.staleness import needs_base_parameters
from hvd_async.store.wire.layout import StoreMemory
from hvd_async.vectors import arithmetic
from hvd_async.vectors.redo import Redo
from hvd_async.vectors.vector_map import VectorMap


@dataclass(frozen=True)
class Left:
    """A store at `version`, with the pending sum in `sum_place`, that a process left in the block when it died."""

    version: int
    sum_place: int | None


def shard_in(
    memory: StoreMemory,
    part: slice,
    vector_map: VectorMap,
    optimizer: OptimizerConfig,
    strategy: StrategyConfig,
    left: Left | None = None,
) -> Shard:
    """Return the shard of `part` of a vector with the parts `vector_map`, in `memory`, at version 0, whose parameters
    are in their buffer; or as it was `left`."""
    layout, names = memory.layout, state_names(optimizer)

    def in_block(name: str) -> torch.Tensor:
        place = len(names) if name == OTHER_SUM else place_in_block(name, names, None)
        return memory.vector(layout.state_offset(place))

    kept = None
    if layout.redo_bytes and arithmetic.is_compiled():
        redo = Redo(memory.vector(layout.redo_offset, layout.redo_bytes, torch.uint8))
        kept = KeptMemory(redo, in_block(OTHER_SUM), left is not None, None if left is None else left.sum_place)
    return Shard(
        [memory.vector(layout.published_offset(number)) for number in range(layout.num_buffers)],
        optimizer,
        0 if left is None else left.version,
        provisional=[memory.vector(layout.provisional_offset(number)) for number in range(layout.num_provisional)],
        vector_map=vector_map.within(part),
        keeps_bases=needs_base_parameters(strategy),
        allocate=in_block if layout.num_state_vectors else None,
        kept=kept,
    )
