"""Which ranks are there: they show their processes to the store before training, and learn in the end who was lost."""

from __future__ import annotations

from collections.abc import Sequence

from hvd_async.cluster.topology import RankPlan
from hvd_async.store.serve.liveness import show_process
from hvd_async.store.wire.layout import ShardWord, StoreWindow, Word, WorkerWord


def show_roles(plan: RankPlan, window: StoreWindow) -> None:
    """Show the process of this rank in the words of each of its roles, in the block of shard 0, which `window` reaches."""
    layout = window.layout
    if plan.shard is not None:
        show_process(window, layout.shard_word(plan.shard, ShardWord.HEARTBEAT) if plan.shard else Word.STORE_HEARTBEAT)
    if plan.worker is not None:
        show_process(window, layout.worker_word(plan.worker, WorkerWord.HEARTBEAT))


def lost_ranks(plans: Sequence[RankPlan], window: StoreWindow) -> list[int]:
    """Return the ranks of workers that the run went on without. They are final once the run is served."""
    if not window.load(Word.NUM_LOST):
        return []
    workers = {plan.worker: plan.rank for plan in plans if plan.worker is not None}
    return [rank for worker, rank in workers.items() if window.load(window.layout.worker_word(worker, WorkerWord.RANK_LOST))]
