"""The memory of a simulated cluster's ranks: what real ranks of the same configuration would allocate."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hvd_async.cluster.topology import Machine, RankPlan, assign_roles, placement_of
from hvd_async.config import RunConfig
from hvd_async.strategies import synchronous
from hvd_async.strategies.memory_plan import MemoryPlan
from hvd_async.strategies.protocol import JobSize


@dataclass(frozen=True)
class RankMemory:
    """Bytes for vectors of parameters, gradients and the optimizer; those of activations and data come on top.

    `store`: of rank 0, which has the store, or its first shard, and writes checkpoints. `worker`: of the worker that needs most.
    """

    store: int
    worker: int


def memory_of(config: RunConfig, size: int, num_workers: int) -> RankMemory:
    """Return the memory of `num_workers` workers, and of the store's ranks, for a model of `size` elements on the CPU.

    Raises `HvdAsyncError` where real ranks could not run: with more shards than the model or the ranks have room for, or too
    few places for workers.
    """
    plans = _plans(config, num_workers)
    job = JobSize(config.strategy, config.store, config.push, config.optimizer, plans, size)
    plan = MemoryPlan(job) if config.strategy.is_async else None

    def total(rank: int) -> int:
        needs = synchronous.needs(job, rank) if plan is None else plan.needs(rank)
        model = 4 * size if plans[rank].worker is None else 8 * size
        return model + sum(need.num_bytes for need in needs)

    # The first worker of a host also has what its workers share.
    workers = [each.rank for each in plans if each.worker is not None and each.rank > 0] or [0]
    return RankMemory(total(0), max(total(workers[0]), total(workers[-1])))


def _plans(config: RunConfig, num_workers: int) -> tuple[RankPlan, ...]:
    """Return the roles of all ranks, on as many hosts as the simulated cluster has."""
    placement = dataclasses.replace(placement_of(config), device="cpu", store_device="cpu", threads=1)
    if placement.kind == "single":
        num_workers = 1
    is_apart = placement.is_async and placement.placement == "dedicated"
    per_host = config.simulation.workers_per_node or num_workers
    hosts = [f"node {worker // per_host}" for worker in range(num_workers)]
    hosts = ["node 0"] * (placement.num_shards if is_apart else 0) + hosts
    return assign_roles([Machine(host, (0,), ()) for host in hosts], placement)
