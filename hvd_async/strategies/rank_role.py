"""The role of one rank in an asynchronous run: serve a shard, train, or both."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from hvd_async.cluster.topology import RankPlan
from hvd_async.config import OptimizerConfig, StrategyConfig
from hvd_async.errors import ConfigError, HvdAsyncError, PeerError
from hvd_async.store.optimizers.factory import state_names
from hvd_async.store.optimizers.protocol import StepOrder
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.serve.client import ClientOptions, StoreClient
from hvd_async.store.serve.device_block import Reach
from hvd_async.store.serve.liveness import NO_GUESTS, Guests, Heartbeat, wait_until, watch_store
from hvd_async.store.serve.node_aggregation import ERRORS, NodeAggregator
from hvd_async.store.serve.server import ServerOptions, StoreServer
from hvd_async.store.serve.stopping import StopTimeoutError
from hvd_async.store.shards.in_block import shard_in
from hvd_async.store.shards.shard import Shard
from hvd_async.store.shards.shard_group import RemoteShard, ShardGroup, WholeVectors
from hvd_async.store.shards.shard_server import ShardServer
from hvd_async.store.staleness import needs_versions_under_way
from hvd_async.store.wire.layout import Served, ShardWord, StoreMemory, StoreWindow, Word, WorkerWord
from hvd_async.store.wire.slots import DTYPES
from hvd_async.store.wire.stop import StopNotice, announce_failure
from hvd_async.strategies.memory_plan import MemoryPlan
from hvd_async.strategies.outliving import obstacle_to_outliving
from hvd_async.strategies.protocol import Job, Session
from hvd_async.strategies.push_pull import DirectPushPull, NodePushPull, PushPull, wait
from hvd_async.strategies.workers import AsynchronousWorker, HostCopy, OverlappedWorker
from hvd_async.system.failure_message import note_told, tell
from hvd_async.transport import cuda_ipc

_LONGEST_POLL_SECONDS = 0.02


def fail(
    window: StoreWindow, rank: int, error: BaseException, strategy: StrategyConfig, *, is_state_lost: bool = False
) -> None:
    """Tell all ranks that `rank` fails because of `error`; wait until the store has saved its state, as long as it lives.

    A rank that fails ends the job, and the store with it, so the store must save first. `is_state_lost`: a part of the
    parameters is lost.
    """
    if isinstance(error, PeerError) and error.is_state_lost and not error.is_reported:
        tell(rank, error)
        return  # the store has no heartbeat: there is no one to wait for
    report(window, rank, error, is_state_lost=is_state_lost)
    store, began = watch_store(window, strategy.store_timeout_seconds), time.monotonic()

    def is_over() -> bool:
        is_late = time.monotonic() - began > strategy.hang_timeout_seconds
        return window.load(Word.SERVED) != 0 or bool(store.why_dead()) or is_late

    wait_until(is_over, window, Word.STORE_BELL, lambda: None, longest_poll_seconds=_LONGEST_POLL_SECONDS)


def report(window: StoreWindow, rank: int, error: BaseException, *, is_state_lost: bool = False) -> None:
    """Print and announce that `rank` fails because of `error`, unless another rank does. Of a mistake in a script, which all
    ranks make alike, only the first rank tells."""
    is_first = not is_of_others(error) and announce_failure(window, rank, is_state_lost=is_state_lost)
    if isinstance(error, ConfigError) and not is_first:
        note_told(error)
    tell(rank, error)


def is_of_others(error: BaseException) -> bool:
    """Whether `error` is the failure of another rank, which reports it itself."""
    return isinstance(error, PeerError) and error.is_reported


@dataclass(frozen=True)
class Blocks:
    """Memory as one rank reaches it: `memories[k]` is shard k in the memory of its host, `reach` the block of shard 0 where its
    vectors are; `node_block` is that of node sums, if there are any; `guests` are known to the store's rank."""

    memories: Sequence[StoreWindow]
    reach: Reach
    node_block: StoreMemory | None = None
    guests: Guests = NO_GUESTS


class RankRole:
    """Role of one rank in a run: serve a shard, train, or both."""

    def __init__(
        self,
        job: Job,
        plan: MemoryPlan,
        me: RankPlan,
        blocks: Blocks,
    ) -> None:
        """All arguments stay the caller's. `me` is the role, of a rank or of a process that has joined."""
        self._job = job
        self._plan = plan
        self._me = me
        self._memories = blocks.memories
        self._reach = blocks.reach
        self._node_block = blocks.node_block
        self._guests = blocks.guests
        self._server: StoreServer | None = None

    @contextlib.contextmanager
    def playing(self, session: Session) -> Iterator[None]:
        """Serve before the block, train in it, or both; give `session` the worker, and at the end the reason of the end."""
        if self._me.shard is None:
            with self._working(session):
                yield
            return
        serve = self._make_server()
        if self._me.worker is None:
            session.notice = serve()
            yield
            return
        with self._serving_and_working(serve, session):
            yield

    def _make_server(self) -> Callable[[], StopNotice | None]:
        job, number, memory = self._job, self._me.shard, self._reach.store
        assert number is not None and memory is not None
        part = self._plan.parts[number]
        shard = make_shard(job, memory, part)
        cuda_ipc.finish(self._me.store_device or "cpu")  # since a thread with another stream uses the shard
        if number > 0:
            return lambda: self._serve_shard(number, part, shard, memory)
        return lambda: self._serve_or_rescue(shard, memory)

    def _heartbeat(self, word: int, is_outlived: bool = False) -> Heartbeat:
        """Return the heartbeat of this rank, in the block of shard 0. `is_outlived`: others go on without this rank."""
        return Heartbeat(self._memories[0], word, self._job.strategy.hang_timeout_seconds, is_outlived)

    def _serve_shard(self, number: int, part: slice, shard: Shard, memory: StoreMemory) -> StopNotice | None:
        sequencer, timeout = self._memories[0], self._job.strategy.store_timeout_seconds
        with self._heartbeat(sequencer.layout.shard_word(number, ShardWord.HEARTBEAT)) as heartbeat:
            if (saved := self._job.saved) is not None:
                shard.load(saved.load(part), saved.data["version"])
            server = ShardServer(number, part, shard, memory, sequencer, timeout, heartbeat.touch)
            return server.serve(self._job.stop_requested)

    def _serve_or_rescue(self, shard: Shard, memory: StoreMemory) -> StopNotice | None:
        """Serve; on a failure that leaves the store whole, save the store before any rank ends the job."""
        assert self._job.observer is not None  # the store's rank has the observer
        rank, observer = self._me.rank, self._job.observer
        with self._heartbeat(Word.STORE_HEARTBEAT) as heartbeat:
            try:
                return self._serve(shard, memory, heartbeat.touch)
            except BaseException as error:
                is_lost = not isinstance(error, HvdAsyncError) or (isinstance(error, PeerError) and error.is_state_lost)
                if not is_of_others(error):
                    announce_failure(memory, rank, is_state_lost=is_lost)
                tell(rank, error)
                # Errors of other types may have interrupted an update.
                is_saved = not is_lost
                if is_lost:
                    observer.settle()
                elif self._server is not None:
                    asked = StopNotice.from_word(memory.load(Word.STOP)) if isinstance(error, StopTimeoutError) else None
                    is_saved = self._server.rescue(asked)
                memory.store(Word.SERVED, Served.SAVED if is_saved else Served.UNSAVED)
                raise

    def _serve(self, shard: Shard, memory: StoreMemory, touch: Callable[[], None]) -> StopNotice | None:
        job, plan = self._job, self._plan
        others = [
            RemoteShard(number, plan.owners[number], self._memories[number], plan.parts[number])
            for number in range(1, len(plan.parts))
        ]
        if not others:
            store = job.make_store(shard, job.strategy, job.num_workers)
            self._server = make_server(job, memory, store, touch, self._guests)
            notice = self._server.serve(job.stop_requested)
            store.detach()  # the block is about to be freed, and the last version is still to be saved
            return notice
        whole = WholeVectors(state_names(job.optimizer), job.flat.map)
        shards = ShardGroup(shard, memory, others, whole, job.strategy.store_timeout_seconds, touch)
        shards.meet()
        store = job.make_store(shards, job.strategy, job.num_workers)
        self._server = make_server(job, memory, store, touch, self._guests)
        notice = self._server.serve(job.stop_requested)
        store.detach()
        shards.end()
        return notice

    @contextlib.contextmanager
    def _working(self, session: Session) -> Iterator[None]:
        job, worker = self._job, self._me.worker
        assert worker is not None
        strategy = job.strategy
        options = ClientOptions(
            waits_for_stragglers=strategy.waits_for_stragglers,
            announces=needs_versions_under_way(strategy),
            store_timeout_seconds=strategy.store_timeout_seconds,
            claim_order=job.claim_order,
            push=job.push,
            leave_requested=job.leave_requested,
            pulls_provisional=strategy.has_provisional,
        )
        is_late = self._me.rank >= len(job.plans)
        word = self._memories[0].layout.worker_word(worker, WorkerWord.HEARTBEAT)
        with self._heartbeat(word, is_late or not obstacle_to_outliving(job)) as heartbeat:
            client = self._make_client(worker, options, heartbeat.touch)
            if not client.join(is_late):
                session.notice = client.stop_notice()
                yield
                return
            push_pull = self._make_push_pull(client)
            host = HostCopy(job.flat, is_separate=job.push.overlap, is_direct=self._reach.is_direct)
            if job.push.overlap:
                with OverlappedWorker(job, client, push_pull, host, worker) as session.worker:
                    yield
            else:
                session.worker = AsynchronousWorker(job, client, push_pull, host, worker)
                yield
            push_pull.stop()
            if job.leave_requested():
                client.wait_noted()
                return
            session.notice = client.wait_for_end(job.stop_requested)

    def _make_client(self, worker: int, options: ClientOptions, touch: Callable[[], None]) -> StoreClient:
        errors: list[torch.Tensor] = []
        if (block := self._node_block) is not None and self._job.push.error_feedback:
            errors = [block.vector(block.layout.state_offset(number)) for number in ERRORS]
        windows = [self._reach.worker, *self._memories[1:]]
        return StoreClient(windows, worker, options, self._plan.slot_of(worker), errors, touch)

    def _make_push_pull(self, client: StoreClient) -> PushPull:
        strategy = self._job.strategy
        if self._node_block is None:
            return DirectPushPull(client, strategy)
        workers = [plan.worker for plan in self._plan.node_of_rank(self._me.rank) if plan.worker is not None]
        member = workers.index(cast(int, self._me.worker))
        node = NodeAggregator(self._node_block, workers, member, client, lambda client: wait(client, strategy))
        return NodePushPull(node, client, strategy)

    @contextlib.contextmanager
    def _serving_and_working(self, serve: Callable[[], StopNotice | None], session: Session) -> Iterator[None]:
        """Serve the shard in a thread and train in this one (colocated). A failure of either ends the other."""
        failures: list[BaseException] = []
        notices: list[StopNotice | None] = []

        def run() -> None:
            try:
                cuda_ipc.use_own_stream(self._me.store_device or "cpu")
                notices.append(serve())
            except BaseException as error:
                if not is_of_others(error):  # otherwise the failed rank has reported and announced the failure
                    tell(self._me.rank, error)
                    if self._memories[0].load(Word.FAILED) == 0:
                        announce_failure(self._memories[0], self._me.rank, is_state_lost=True)
                failures.append(error)

        thread = threading.Thread(target=run, name="hvd-async-store", daemon=True)
        thread.start()
        try:
            with self._working(session):
                yield
        except BaseException as error:
            own = not is_of_others(error)
            if own:
                report(self._memories[0], self._me.rank, error)
            thread.join()  # while the thread saves its state
            if failures and not own:
                raise failures[0] from None
            raise
        thread.join()
        if failures:
            raise failures[0]
        session.notice = notices[0]


def make_shard(job: Job, memory: StoreMemory, part: slice) -> Shard:
    """Return the shard of `part` of the initial parameters, at version 0, in the buffers of `memory`."""
    first = memory.vector(memory.layout.published_offset(0))
    first.copy_(job.flat.parameters[part])
    warm_up(job.optimizer, DTYPES[memory.layout.format.dtype], first.device)
    shard = shard_in(memory, part, job.flat.map, job.optimizer, job.strategy)
    return job.begin(shard, part)


def warm_up(optimizer: OptimizerConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Compile the kernels of an update on a GPU before any worker waits for one. Nothing is compiled on the CPU."""
    if device.type == "cpu":
        return
    plain = optimizer.model_copy(update={"groups": ()})
    shard = Shard([torch.zeros(64, device=device), torch.zeros(64, device=device)], plain)
    for _ in range(2):
        shard.add(Gradient(torch.zeros(64, dtype=dtype, device=device), 0.0), 1.0)
    shard.step(StepOrder(version=1, rate_factor=1.0, divisor=2.0))


def make_server(
    job: Job,
    memory: StoreMemory,
    store: ParameterStore,
    touch: Callable[[], None] = lambda: None,
    guests: Guests = NO_GUESTS,
) -> StoreServer:
    """Return the server of the store's rank, for use by the calling thread or another. `touch`: see `StoreServer`;
    `guests`: see `ServerOptions`."""
    assert job.observer is not None  # the store's rank has the observer
    options = ServerOptions(
        last_version=job.last_version,
        first_evaluation=job.evaluation.next_after(store.version),
        evaluate_every=job.evaluation.every,
        worker_timeout_seconds=job.strategy.patience_seconds,
        hang_timeout_seconds=job.strategy.hang_timeout_seconds,
        stop_timeout_seconds=job.strategy.stop_timeout_seconds,
        ended_workers=lambda: {worker for rank in memory.dead_ranks() if (worker := job.plans[rank].worker) is not None},
        least_workers=job.strategy.min_workers if not obstacle_to_outliving(job) else None,
        is_only_store=sum(plan.shard is not None for plan in job.plans) == 1,
        guests=guests,
        num_workers=job.num_workers,
        slot_of=MemoryPlan(job.sized).slot_of,
        num_batches=job.num_batches,
        claim_order=job.claim_order,
    )
    return StoreServer(store, memory, job.observer, options, touch)
