"""What training and a strategy say to each other. Every strategy passes through here, so the loop is one for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch

from hvd_async.cluster.topology import RankPlan
from hvd_async.config import OptimizerConfig, PushConfig, StoreConfig, StrategyConfig
from hvd_async.store.ledger import BatchLedger, ClaimOrder
from hvd_async.store.observer import Observer
from hvd_async.store.parameter_store import ParameterStore, ShardOps
from hvd_async.store.wire.stop import StopNotice
from hvd_async.transport.group import Group
from hvd_async.vectors.flat import FlatParameters


@dataclass(frozen=True)
class Claim:
    """A batch to compute. Where `counts` is False, a synchronous rank computes along with the others for nothing: its
    gradient and its tokens are to be zero."""

    batch: int
    counts: bool = True


@dataclass(frozen=True)
class Step:
    """A finished minibatch, whose gradient of the summed loss is in the flat vector's `gradient`.

    `loss` is the sum over `tokens` target tokens in nats, `seconds` the time from claim to here.
    """

    batch: int
    tokens: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class EvaluationRequest:
    """Measure shard `shard` of `num_shards` of the validation data with `parameters` ([size], float32) of `version`."""

    version: int
    parameters: torch.Tensor
    shard: int = 0
    num_shards: int = 1


class Worker(Protocol):
    """One rank's share of a run. In synchronous strategies every call is collective over the workers."""

    def claims(self) -> Iterator[Claim]:
        """The batches of this rank, until the data end, the run is finished, or a signal stops it."""

    def step(self, step: Step) -> None:
        """Hand over the gradient and bring the parameters up to date. Waits for others where the strategy does."""

    def evaluation_due(self) -> EvaluationRequest | None:
        """What this rank is to evaluate now, if anything."""

    def report(self, request: EvaluationRequest, statistics: Sequence[float]) -> None:
        """The additive statistics that the evaluation gave."""


@dataclass(frozen=True)
class EvaluationPlan:
    """When versions are evaluated while training goes on: every so many versions; 0: not at all."""

    every: int
    snapshot: Callable[[int], torch.Tensor]
    """Reads the parameters of a version, [size], float32, from its snapshot."""

    def next_after(self, version: int) -> int:
        """The first version above `version` that is to be evaluated."""
        return (version // self.every + 1) * self.every if self.every else 0


@dataclass(frozen=True)
class SavedState:
    """What `ParameterStore.state()` gave an earlier process.

    `data` is the same on all ranks; `load` reads the tensors, or a part of each, from the disk.
    """

    data: Mapping[str, Any]
    load: Callable[[slice | None], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class JobSpec:
    """What a strategy is to do on one rank, as far as it is known before anything is written or allocated for the run."""

    strategy: StrategyConfig
    store: StoreConfig
    push: PushConfig
    optimizer: OptimizerConfig
    plans: Sequence[RankPlan]
    model: torch.nn.Module
    flat: FlatParameters
    num_batches: int | None
    epoch_of: Callable[[int], int]
    last_version: int | None
    """The run ends when this version is made; None: when its batches are used up."""
    evaluation: EvaluationPlan
    stop_requested: Callable[[], StopNotice | None]

    @property
    def num_workers(self) -> int:
        """Ranks that train."""
        return sum(plan.worker is not None for plan in self.plans)

    def with_state(self, observer: Observer | None, saved: SavedState | None) -> Job:
        """Return the job, to be told to `observer` and continued from `saved`."""
        return Job(**{field.name: getattr(self, field.name) for field in fields(self)}, observer=observer, saved=saved)


@dataclass(frozen=True, kw_only=True)
class Job(JobSpec):
    """All that a strategy is given on one rank. The objects are the strategy's to use until `execute` returns."""

    observer: Observer | None
    """Told of everything; on rank 0 alone."""
    saved: SavedState | None
    """What to continue from."""

    @property
    def claim_order(self) -> ClaimOrder:
        """Which batches are still to be computed, and in which order."""
        return ClaimOrder() if self.saved is None else BatchLedger(**self.saved.data["ledger"]).claim_order()

    def make_store(self, vectors: ShardOps, strategy: StrategyConfig, num_workers: int) -> ParameterStore:
        """A store that directs `vectors` (at version 0, its own from now on), continued from `saved` where there is that."""
        store = ParameterStore(vectors, self.flat.size, self.optimizer, strategy, num_workers)
        if self.saved is not None:
            store.load_state(self.saved.load(None), self.saved.data)
        return store


class Strategy(Protocol):
    """Horovod, DDP, the parameter store, or one process alone."""

    name: str

    @property
    def group(self) -> Group:
        """All ranks of the job."""

    def check(self, spec: JobSpec) -> None:
        """Raise `HvdAsyncError`, on all ranks alike, where `spec` cannot be run here. Collective over all ranks; nothing has been
        written or allocated for the run yet."""

    def execute(self, job: Job, loop: Callable[[Worker, torch.nn.Module], None]) -> StopNotice | None:
        """Run `loop` on every worker until the run ends; why it was stopped, or None when it reached its end.

        Collective over all ranks. `loop` computes with the module it is given, which may wrap `job.model`.
        """

    def transport(self, plans: Sequence[RankPlan], rank: int) -> str:
        """How `rank` exchanges gradients, for people."""

    def close(self) -> None:
        """Give back what the strategy holds, in an orderly end. Collective over all ranks."""
