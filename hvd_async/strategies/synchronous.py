"""The synchronous strategies: every rank computes a batch, the gradients are summed, every rank makes the same update."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch

from hvd_async.config import OptimizerConfig, StrategyConfig
from hvd_async.errors import HvdAsyncError, OrphanedError
from hvd_async.store.arrival import Arrival, Update
from hvd_async.store.optimizers.factory import state_names
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.shards.shard import Shard
from hvd_async.store.wire.stop import StopKind, StopNotice
from hvd_async.strategies.memory_plan import needs_of_recorder
from hvd_async.strategies.protocol import Claim, EvaluationRequest, Job, JobSize, Session, Step
from hvd_async.strategies.synchronous_watch import Watch
from hvd_async.system.failure_message import message_of, note_told, tell
from hvd_async.system.json_text import plain_number
from hvd_async.transport.capacity import Need
from hvd_async.transport.group import Group
from hvd_async.vectors.flat import FlatParameters

# The store of a synchronous rank gets the sum of all ranks' gradients at once, so one acceptance completes an update.
ONE = {
    "arrivals_per_update": 1,
    "lockstep": False,
    "synchronous_versions": 0,
    "max_staleness": None,
    "staleness_policy": "none",
}


class AllReduce(Protocol):
    """Operations of a library for synchronous training."""

    def attach(self, model: torch.nn.Module, flat: FlatParameters) -> torch.nn.Module:
        """Return the module to compute with, whose `backward` may already begin to sum gradients. Called once."""

    def reduce(self, flat: FlatParameters) -> None:
        """Set `flat.gradient` to the sum over all ranks, after `backward`. Collective; waits for the slowest rank."""

    def reduce_vector(self, vector: torch.Tensor) -> None:
        """Set `vector` ([size], float32) to its sum over all ranks; `attach` was not called. Collective."""

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """Return the numbers of every rank (equally many), exact, in the order of ranks. Collective."""


class NoAllReduce:
    """The operations on a single rank, which has nothing to sum."""

    def attach(self, model: torch.nn.Module, flat: FlatParameters) -> torch.nn.Module:
        return model

    def reduce(self, flat: FlatParameters) -> None:
        flat.collect_gradient()

    def reduce_vector(self, vector: torch.Tensor) -> None:
        pass  # the sum of one rank

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        return [list(numbers)]


def needs(job: JobSize, rank: int) -> list[Need]:
    """Return the memory that `rank` takes for its replica of the store and for sums, and on rank 0 for checkpoints."""
    vector_bytes, num_vectors = 4 * job.size, len(state_names(job.optimizer))
    found = []
    if job.plans[rank].device == "cpu":
        found.append(Need(f"replica: {num_vectors} vectors of the optimizer", num_vectors * vector_bytes, False))
        if job.strategy.kind == "ddp":
            found.append(Need("DDP: gradients in buckets", vector_bytes, False))
        if job.strategy.delay:
            found.append(Need("replica: earlier parameters", (job.strategy.delay + 1) * vector_bytes, False))
    return found + (needs_of_recorder(job) if rank == 0 else [])


class WithReplica:
    """The part of the synchronous strategies that each of their ranks has alike: a replica of the store."""

    less_memory = "use fewer ranks on the node, or a smaller model"

    def needs(self, job: JobSize, rank: int) -> Sequence[Need]:
        """Return the memory that a job takes on `rank`; see `Strategy.needs`."""
        return needs(job, rank)


@contextlib.contextmanager
def session(job: Job, group: Group, all_reduce: AllReduce) -> Iterator[Session]:
    """Open the session of `job` on this rank, as `Strategy.session` does, for all synchronous strategies.

    A rank that fails lets rank 0, which first saves its replica, end the job; it waits as long as a stop may take.
    """
    rank = group.rank
    model = job.model if job.reduces_at_step else all_reduce.attach(job.model, job.flat)
    with Watch(job, group) as watch:
        worker = SynchronousWorker(job, rank, all_reduce, watch)
        opened = Session(worker, model)
        try:
            yield opened
            watch.is_busy = True
            if job.observer is not None:
                job.observer.ended(worker.notice)
        except Exception as error:
            status = error.exit_status if isinstance(error, HvdAsyncError) else 1
            if len(job.plans) > 1 and not isinstance(error, HvdAsyncError):
                tell(rank, error)  # before the slow save
            if rank > 0 and group.report_failure(status, message_of(rank, error)):
                time.sleep(job.strategy.stop_timeout_seconds)  # rank 0 prints the message and ends the job meanwhile
            watch.end()
            if len(job.plans) > 1:
                watch.tell(message_of(rank, error))
                note_told(error)
            if job.observer is not None and watch.is_whole:
                job.observer.rescue()
            raise
    if worker.notice is not None and worker.notice.kind is StopKind.ORPHANED:
        raise OrphanedError(f"stopped by {worker.notice}, everything saved")
    opened.notice = worker.notice


class SynchronousWorker:
    """Worker with a replica of the store. All ranks feed their replicas the same sums.

    One gradient that is not finite makes the sum not finite, and every replica refuses all arrivals of the step.
    """

    def __init__(self, job: Job, rank: int, all_reduce: AllReduce, watch: Watch) -> None:
        """Collective: all ranks call this in the same order as the other collective calls of the strategy."""
        strategy = job.strategy.model_copy(update=ONE)
        self._replica = job.begin(make_replica(job.flat, job.optimizer, strategy.delay), slice(None))
        self.store: ParameterStore = job.make_store(self._replica, strategy, 1)
        self.notice: StopNotice | None = None
        self._job = job
        self._rank = rank
        self._all_reduce = all_reduce
        self._watch = watch
        self._present = list(range(job.num_workers))  # the ranks that compute; the others have left their loops
        self._has_left = False
        self._group: tuple[int, ...] = ()
        self._waited = 0.0
        self._next_evaluation = job.evaluation.next_after(self.store.version)
        if job.observer is not None:
            job.observer.started(self.store)
        self._is_finished = self._is_last_version() or self._ask_observer()

    def claims(self) -> Iterator[Claim]:
        """Yield the batches of this rank, of a group of one for each present rank. A group never extends into the next epoch."""
        while not self._is_finished and self.notice is None:
            self._group = self._group or self._next_group(self.store.ledger.watermark)
            if not self._group:
                return
            load_base(self._replica, self._job.flat, self._job.strategy, self._rank)
            mine = self._batch_of(self._group)
            yield Claim(self._group[0] if mine is None else mine, mine is not None, self._upcoming())

    def pull_newer(self) -> None:
        """Do nothing: no rank makes an update in the middle of a step."""

    def claims_after_leaving(self) -> Iterator[Claim]:
        """Yield the batches of the others, beginning with that of a step that this rank has not ended."""
        self._has_left = True
        for claim in self.claims():
            yield Claim(claim.batch, counts=False)

    def step(self, step: Step) -> None:
        started = time.monotonic()
        requested, observer = self._job.stop_requested(), self._job.observer
        asked = 0 if requested is None else requested.to_word()  # below 2^53: exact as a double
        is_over = observer is not None and observer.is_finished()
        with self._watch.waiting():
            if self._job.reduces_at_step:
                self._all_reduce.reduce_vector(self._job.flat.collect_gradient())
            else:
                self._all_reduce.reduce(self._job.flat)
            own = [step.weight, step.loss, step.seconds, self._waited, asked, float(is_over), float(self._has_left)]
            table = self._all_reduce.gather(own)
        with self._watch.updating():
            self._update(started, table)

    def _update(self, started: float, table: Sequence[Sequence[float]]) -> None:
        """Apply the summed gradient of all ranks, whose numbers are in `table`."""
        observer = self._job.observer
        self._waited = time.monotonic() - started
        version, strategy = self.store.version, self._job.strategy
        computed = [
            (worker, batch) for worker, batch in zip(self._present, self._group, strict=False) if not table[worker][6]
        ]
        self._present = [worker for worker in self._present if not table[worker][6]]
        self._group = ()
        arrivals = [
            Arrival(
                worker=worker,
                batch=batch,
                base_version=version - strategy.num_versions_behind(version, worker),
                weight=plain_number(table[worker][0]),
                loss=table[worker][1],
                step_seconds=table[worker][2],
                wait_seconds=table[worker][3],
                push=computed[0][1],
            )
            for worker, batch in computed
        ]
        if arrivals:
            if observer is not None:
                observer.received(arrivals)
                observer.updating()
            self.store.accept(arrivals, Gradient.measure(self._job.flat.gradient))
            self._notify(self.store.advance())
        self._is_finished |= self._is_last_version() or bool(table[0][5]) or not self._present
        for numbers in table:
            if self.notice is None:
                self.notice = StopNotice.from_word(int(numbers[4]))

    def evaluation_due(self) -> EvaluationRequest | None:
        """Return this rank's part of the evaluation that is due, which all ranks share."""
        if not self._next_evaluation or self.store.version < self._next_evaluation:
            return None
        self._next_evaluation = self._job.evaluation.next_after(self.store.version)
        self._watch.is_busy = True
        return EvaluationRequest(
            self.store.version, self.store.evaluated_parameters, shard=self._rank, num_shards=self._job.num_workers
        )

    def report(self, request: EvaluationRequest, statistics: Sequence[float]) -> None:
        self._watch.is_busy = False
        with self._watch.waiting():
            table = self._all_reduce.gather(statistics)
        if self._job.observer is not None:
            with self._watch.updating():
                self._job.observer.evaluated(request.version, [sum(column) for column in zip(*table, strict=True)])
        self._is_finished |= self._ask_observer()

    def _next_group(self, first: int) -> tuple[int, ...]:
        """Return the next group of the batches from `first` on."""
        return next_group(self.store.ledger.open_from(first), len(self._present), self._job.num_batches, self._job.epoch_of)

    def _batch_of(self, group: Sequence[int]) -> int | None:
        """Return the batch of this rank in `group`; None if it has none."""
        place = self._present.index(self._rank) if self._rank in self._present else len(group)
        return group[place] if place < len(group) else None

    def _upcoming(self) -> tuple[int, ...]:
        """Return the batches of this rank in the groups after the present one."""
        found: list[int] = []
        group = self._group
        for _ in range(self._job.num_batches_ahead):
            group = self._next_group(group[-1] + 1)
            if not group:
                break
            mine = self._batch_of(group)
            found += [] if mine is None else [mine]
        return tuple(found)

    def _notify(self, update: Update | None) -> None:
        refused = self.store.take_refused()
        if self._job.observer is None:
            return
        for arrival, reason in refused:
            self._job.observer.refused(arrival, reason)
        if update is not None:
            self._job.observer.updated(update)

    def _is_last_version(self) -> bool:
        return self._job.last_version is not None and self.store.version >= self._job.last_version

    def _ask_observer(self) -> bool:
        """Ask rank 0's observer whether the run is over; all ranks learn the answer at the same point."""
        observer = self._job.observer
        with self._watch.waiting():
            return bool(self._all_reduce.gather([float(observer is not None and observer.is_finished())])[0][0])


def make_replica(flat: FlatParameters, optimizer: OptimizerConfig, delay: int) -> Shard:
    """Return the vectors of a rank's store at version 0, with the parameters in `flat`; see `load_base`."""
    if not delay:  # no copy: the store updates the vector that the model reads
        return Shard([flat.parameters], optimizer, vector_map=flat.map)
    buffers = [flat.parameters.clone(), *(torch.empty_like(flat.parameters) for _ in range(delay))]
    return Shard(buffers, optimizer, num_past=delay, vector_map=flat.map)


def load_base(replica: Shard, flat: FlatParameters, strategy: StrategyConfig, worker: int) -> None:
    """Copy into `flat` the parameters for the next gradient of `worker`: those of so many versions ago as `strategy` says."""
    if strategy.delay:
        behind = strategy.num_versions_behind(replica.version, worker)
        flat.parameters.copy_(replica.read(f"past_{behind}" if behind else "parameters"))


def next_group(
    open_batches: Iterable[int], num_workers: int, num_batches: int | None, epoch_of: Callable[[int], int]
) -> tuple[int, ...]:
    """Return the first of `open_batches`, up to `num_workers`, all of one epoch."""
    group: list[int] = []
    for batch in itertools.islice(open_batches, num_workers):
        if (num_batches is not None and batch >= num_batches) or (group and epoch_of(batch) != epoch_of(group[0])):
            break
        group.append(batch)
    return tuple(group)
