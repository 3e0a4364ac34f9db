"""Whether the death of the store costs nothing: `launch` keeps its memory, and saves what is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hvd_async.cluster.topology import RankPlan
from hvd_async.config.optimizer import OptimizerConfig
from hvd_async.store.optimizers.factory import can_redo
from hvd_async.system.launch_page import has_keeper
from hvd_async.vectors import arithmetic


def obstacle_to_recovery(plans: Sequence[RankPlan], optimizer: OptimizerConfig, environ: Mapping[str, str]) -> str:
    """Return why the updates since the last checkpoint are lost if the store of `plans` dies, although it is to be
    recoverable; empty if they are not. `environ` is that of rank 0."""
    shards = [plan for plan in plans if plan.shard is not None]
    if any(plan.store_device not in (None, "cpu") for plan in shards):
        return "the store is on a GPU"
    if not can_redo(optimizer):
        return f"optimizer.kind is {optimizer.kind}" if arithmetic.is_compiled() else "there is no C extension"
    if len({plan.host for plan in shards}) > 1:
        return "its shards are on several hosts"
    if not has_keeper(environ):
        return "only `hvd-async launch`, on the store's host, keeps its memory"
    return ""
