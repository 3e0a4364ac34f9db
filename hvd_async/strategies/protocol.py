"""The interface between training and a strategy. Every strategy implements it, so one loop serves all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch

from hvd_async.cluster.topology import RankPlan, count_workers
from hvd_async.config import OptimizerConfig, PushConfig, RunConfig, StoreConfig, StrategyConfig
from hvd_async.store.ledger import BatchLedger, ClaimOrder
from hvd_async.store.observer import Observer
from hvd_async.store.parameter_store import ParameterStore, RateFactor, ShardOps
from hvd_async.store.shards.shard import Shard
from hvd_async.store.wire.stop import StopNotice
from hvd_async.transport.capacity import Need
from hvd_async.transport.group import Group
from hvd_async.vectors.flat import FlatParameters, VectorPlan
from hvd_async.vectors.vector_map import Matrix


@dataclass(frozen=True)
class Claim:
    """A batch to compute. If `counts` is False, a synchronous rank computes only to keep step with the others: its gradient
    and its weight must be zero. `upcoming`: the batches that this rank is to compute next, as far as it knows them."""

    batch: int
    counts: bool = True
    upcoming: tuple[int, ...] = ()


@dataclass(frozen=True)
class Step:
    """A finished minibatch, whose gradient of the summed loss is in the flat vector's `gradient`.

    `loss` is summed over the batch, whose `weight` it is to be divided by; `seconds` is the time since the claim.
    """

    batch: int
    weight: float
    loss: float
    seconds: float


@dataclass(frozen=True)
class EvaluationRequest:
    """Request to evaluate part `shard` of `num_shards` of the validation data with `parameters` ([size], float32) of
    `version`."""

    version: int
    parameters: torch.Tensor
    shard: int = 0
    num_shards: int = 1


class Worker(Protocol):
    """One rank's share of a run. In synchronous strategies every call is collective over the workers."""

    def claims(self) -> Iterator[Claim]:
        """Yield the batches of this rank, until the data end, the run is finished, or a signal stops it."""

    def claims_after_leaving(self) -> Iterator[Claim]:
        """Yield batches that this rank, which has left the loop over `claims`, takes part in without a gradient of its own,
        until the run is over for the others too; none if they do not need it."""

    def pull_newer(self) -> None:
        """Bring the parameters up to date between two micro-batches of a step, without waiting for others. Only of a worker whose
        strategy has several."""

    def step(self, step: Step) -> None:
        """Push the gradient and bring the parameters up to date. Waits for others as the strategy requires."""

    def evaluation_due(self) -> EvaluationRequest | None:
        """Return the evaluation that this rank is to make now, if any."""

    def report(self, request: EvaluationRequest, statistics: Sequence[float]) -> None:
        """Report the additive statistics of a requested evaluation."""


@dataclass(frozen=True)
class EvaluationPlan:
    """Schedule of evaluations during training: one every `every` versions; 0: none."""

    every: int
    snapshot: Callable[[int], torch.Tensor]
    """Reads the parameters of a version, [size], float32, from its snapshot."""

    def next_after(self, version: int) -> int:
        """Return the first version above `version` that is to be evaluated; 0: none."""
        return (version // self.every + 1) * self.every if self.every else 0


@dataclass(frozen=True)
class SavedState:
    """Result of `ParameterStore.state()` in an earlier process.

    `data` is equal on all ranks; `load` reads the tensors, or a slice of each, from disk.
    """

    data: Mapping[str, Any]
    load: Callable[[slice | None], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class JobSize:
    """The part of a job on which its memory depends. `size`: elements of its parameters, as one vector; `matrices`: those that no
    shard may cut."""

    strategy: StrategyConfig
    store: StoreConfig
    push: PushConfig
    optimizer: OptimizerConfig
    plans: Sequence[RankPlan]
    size: int
    matrices: Sequence[Matrix] = ()

    @classmethod
    def of(cls, job: RunConfig | JobSpec, plans: Sequence[RankPlan], vector: VectorPlan | FlatParameters) -> JobSize:
        """Return the size of a run of `job` on `plans`, whose model's parameters are laid out as `vector`."""
        return cls(job.strategy, job.store, job.push, job.optimizer, plans, vector.size, vector.map.matrices)


@dataclass(frozen=True)
class JobSpec:
    """The part of a rank's job that is known before anything is written or allocated for the run."""

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
    rate_factor: RateFactor | None = None
    """The learning rate over time; None: as `optimizer.schedule` says."""
    num_batches_ahead: int = 0
    """How many batches a worker should know ahead of time, for those who read them. In lock-step it knows none."""
    reduces_at_step: bool = False
    """Whether synchronous strategies sum gradients only when a step ends, not already during backward, because there may be
    several backward passes to a step."""

    @property
    def sized(self) -> JobSize:
        """The part of the job on which its memory depends."""
        return JobSize.of(self, self.plans, self.flat)

    @property
    def num_workers(self) -> int:
        """Number of ranks that train."""
        return count_workers(self.plans)

    def with_state(self, observer: Observer | None, saved: SavedState | None) -> Job:
        """Return the job with `observer`, resumed from `saved`."""
        return Job(**{each.name: getattr(self, each.name) for each in fields(self)}, observer=observer, saved=saved)


@dataclass(frozen=True, kw_only=True)
class Job(JobSpec):
    """The job of a strategy on one rank. The strategy may use the objects until its session ends."""

    observer: Observer | None
    """Observer of the store; on rank 0 alone."""
    saved: SavedState | None
    """State from which to resume; None for a new run."""
    invite: Callable[[Mapping[str, Any]], None] = lambda invitation: None
    """Tells other processes, which may join, what they must know; on rank 0 alone."""
    leave_requested: Callable[[], bool] = lambda: False
    """Whether this worker is to leave, and the others to go on; only of a worker that has joined a run under way."""
    initial_state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Vectors of the optimizer ([size] float32, on the CPU) with which a new run begins, by name; the others begin as the
    optimizer says."""

    def begin(self, shard: Shard, part: slice) -> Shard:
        """Return `shard`, of the elements `part`, with its part of `initial_state`."""
        for name, vector in self.initial_state.items():
            shard.read(name).copy_(vector[part])
        return shard

    @property
    def claim_order(self) -> ClaimOrder:
        """Batches that are still to be computed, in order."""
        return ClaimOrder() if self.saved is None else BatchLedger(**self.saved.data["ledger"]).claim_order()

    def make_store(self, vectors: ShardOps, strategy: StrategyConfig, num_workers: int) -> ParameterStore:
        """Return a store that owns and directs `vectors` (at version 0), resumed from `saved` if given."""
        store = ParameterStore(vectors, self.flat.size, self.optimizer, strategy, num_workers)
        if self.rate_factor is not None:
            store.rate_factor = self.rate_factor
        if self.saved is not None:
            store.load_state(self.saved.load(None), self.saved.data)
        return store


@dataclass
class Session:
    """One rank's part of a job that is under way.

    Attributes:
        worker: None on a rank that only held a shard of the store: the run is over there.
        module: the module to compute with, which may wrap the job's model.
        notice: set when the session ends: why the run was stopped; None if it reached its end.
    """

    worker: Worker | None
    module: torch.nn.Module
    notice: StopNotice | None = None


class Strategy(Protocol):
    """A way to train: Horovod, DDP, the parameter store, or a single process."""

    name: str
    less_memory: str
    """What a user can do if there is too little memory, in words."""

    @property
    def group(self) -> Group:
        """All ranks of the job."""

    def needs(self, job: JobSize, rank: int) -> Sequence[Need]:
        """Return the memory that a job takes on `rank`, besides that of the model and its gradient. Raises `ConfigError`, alike
        on all ranks, for a job that this strategy cannot run."""

    def session(self, job: Job) -> AbstractContextManager[Session]:
        """Return the session of `job` on this rank, a context manager: a worker trains inside the block until it has no
        more claims; a rank without a worker serves before the block begins.

        Collective over all ranks. Leaving the block waits for the end of the run on all ranks; leaving it by an exception
        saves the state as far as it is whole, and tells the other ranks.
        """

    def remarks(self, spec: JobSpec) -> Sequence[str]:
        """Return what a user should know of how `spec` runs here, for display."""

    def transport(self, plans: Sequence[RankPlan], rank: int) -> str:
        """Return, for display, how `rank` exchanges gradients."""

    def close(self) -> None:
        """Release the strategy's resources at an orderly end. Collective over all ranks."""
