"""What a configuration asks of the topology."""

from __future__ import annotations

from hvd_async.cluster.topology import Placement
from hvd_async.config import RunConfig


def placement_of(config: RunConfig) -> Placement:
    """The keys of `config` on which roles, devices and threads depend."""
    return Placement(
        kind=config.strategy.kind,
        placement=config.strategy.placement,
        device=config.training.device,
        allow_sharing=config.training.allow_sharing,
        threads=config.training.threads,
        num_shards=config.store.shards,
        store_device=config.store.device,
        is_direct=config.push.is_whole,
    )
