"""Jobs of the asynchronous strategy without data, files or evaluation: the very code of training, and nothing around it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hvd_async.benchmarks.null_observer import NullObserver
from hvd_async.benchmarks.ranks import BenchRank
from hvd_async.cluster.topology import RankPlan
from hvd_async.config import OptimizerConfig, PushConfig, StoreConfig, StrategyConfig
from hvd_async.strategies.asynchronous import Asynchronous
from hvd_async.strategies.protocol import EvaluationPlan, Job, Worker
from hvd_async.transport.bootstrap import MpiGroup
from hvd_async.vectors.flat import FlatParameters


class GroupAsynchronous(Asynchronous):
    """The asynchronous strategy among the ranks of a group that is there already."""

    def __init__(self, group: MpiGroup) -> None:
        """`group` stays the caller's."""
        self.group = group


def run_job(
    place: BenchRank,
    model: torch.nn.Module,
    flat: FlatParameters,
    threads: int,
    loop: Callable[[Worker], None],
    push: PushConfig | None = None,
) -> None:
    """Run `loop` on every worker with rank 0 as the store, until all of them have returned. Collective over `place.group`.

    The store sums as many arrivals as workers are alive, and applies Adam. `flat` holds the parameters of `model`.
    """
    strategy = StrategyConfig(kind="async", arrivals_per_update="workers")
    job = Job(
        strategy=strategy,
        store=StoreConfig(),
        push=push or PushConfig(),
        optimizer=OptimizerConfig(kind="adam", learning_rate=1e-5),
        plans=_plans(place, threads),
        model=model,
        flat=flat,
        num_batches=None,
        epoch_of=lambda batch: 0,
        last_version=None,
        evaluation=EvaluationPlan(0, _no_snapshot),
        observer=NullObserver() if place.rank == 0 else None,
        stop_requested=lambda: None,
        saved=None,
    )
    GroupAsynchronous(place.group).execute(job, lambda worker, module: loop(worker))


def _plans(place: BenchRank, threads: int) -> list[RankPlan]:
    """Rank 0 stores, the others work; all on their CPUs."""
    plans = [RankPlan(0, "host 0", 0, "store", None, "cpu", threads, shard=0)]
    for rank in range(1, place.group.size):
        host = "host 0" if place.is_near[rank] else f"host of rank {rank}"
        plans.append(RankPlan(rank, host, rank, "worker", rank - 1, "cpu", threads))
    return plans


def _no_snapshot(version: int) -> torch.Tensor:
    raise AssertionError(f"nobody evaluates version {version} in a benchmark")
