"""Jobs of the asynchronous strategy without data, files or evaluation: the code of training alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hvd_async.benchmarks.null_observer import NullObserver
from hvd_async.benchmarks.ranks import BenchRank
from hvd_async.cluster.topology import Placement, assign_roles
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


def on_cpus(threads: int) -> Placement:
    """Return the placement of a store and workers that compute on CPUs, with `threads` threads each."""
    return Placement("async", device="cpu", threads=threads)


def run_job(
    place: BenchRank,
    model: torch.nn.Module,
    flat: FlatParameters,
    placement: Placement,
    loop: Callable[[Worker], None],
    push: PushConfig | None = None,
) -> None:
    """Run `loop` on every worker with rank 0 as the store, until every `loop` has returned. Collective over `place.group`.

    The store sums as many arrivals as there are active workers, and applies Adam. `flat` holds the parameters of `model`, on
    the device that `placement` gives to workers. Raises `SetupError` if the GPUs of the hosts do not suffice for it.
    """
    strategy = StrategyConfig(kind="async", arrivals_per_update="workers")
    job = Job(
        strategy=strategy,
        store=StoreConfig(device=placement.store_device),
        push=push or PushConfig(),
        optimizer=OptimizerConfig(kind="adam", learning_rate=1e-5),
        plans=assign_roles(place.machines, placement),
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
    with GroupAsynchronous(place.group).session(job) as session:
        if session.worker is not None:
            loop(session.worker)


def _no_snapshot(version: int) -> torch.Tensor:
    raise AssertionError(f"version {version} is evaluated, but benchmarks evaluate nothing")
