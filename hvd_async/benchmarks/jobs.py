"""Jobs of the asynchronous strategy without data, files or evaluation: the code of training alone."""

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
    """The asynchronous strategy among the ranks of an existing group."""

    def __init__(self, group: MpiGroup) -> None:
        """Borrow `group`."""
        self.group = group


def run_job(
    place: BenchRank,
    model: torch.nn.Module,
    flat: FlatParameters,
    threads: int,
    loop: Callable[[Worker], None],
    push: PushConfig | None = None,
) -> None:
    """Run `loop` on every worker with rank 0 as the store, until every `loop` has returned. Collective over `place.group`.

    The store sums as many arrivals as there are active workers, and applies Adam. `flat` holds the parameters of `model`.
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
    """Return the plans of all ranks: rank 0 is the store, the others are workers, all on CPUs."""
    plans = [RankPlan(0, "host 0", 0, "store", None, "cpu", threads, shard=0)]
    for rank in range(1, place.group.size):
        host = "host 0" if place.is_near[rank] else f"host of rank {rank}"
        plans.append(RankPlan(rank, host, rank, "worker", rank - 1, "cpu", threads))
    return plans


def _no_snapshot(version: int) -> torch.Tensor:
    raise AssertionError(f"version {version} is evaluated, but benchmarks evaluate nothing")
