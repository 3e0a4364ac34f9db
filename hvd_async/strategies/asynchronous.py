"""The asynchronous strategy: a parameter store in memory, workers that push and pull when they are ready."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch

from hvd_async.config import OptimizerConfig
from hvd_async.errors import HvdAsyncError, PeerError
from hvd_async.store.client import ClientOptions, StoreClient
from hvd_async.store.gradient import Gradient
from hvd_async.store.node_team import ERROR, NodeTeam
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.server import ServerOptions, StoreServer
from hvd_async.store.shard import Shard, StepOrder, state_names
from hvd_async.store.shard_group import RemoteShard, ShardGroup
from hvd_async.store.shard_server import ShardServer
from hvd_async.store.slots import DTYPES
from hvd_async.store.staleness import needs_base_parameters
from hvd_async.strategies.exchange import DirectExchange, Exchange, TeamExchange, wait_and_pull
from hvd_async.strategies.plan import Plan
from hvd_async.strategies.protocol import Job, Worker
from hvd_async.strategies.workers import AsynchronousWorker, HostCopy, OverlappedWorker
from hvd_async.topology import RankPlan
from hvd_async.transport import cuda_ipc
from hvd_async.transport.bootstrap import MpiGroup, init_mpi
from hvd_async.transport.capacity import check_capacity
from hvd_async.transport.device_block import Reach, open_device_block
from hvd_async.transport.layout import StopKind, StopNotice, Word
from hvd_async.transport.window import StoreMemory

if TYPE_CHECKING:
    from hvd_async.transport.mpi import RemoteMemory, SharedMemory

Loop = Callable[[Worker, torch.nn.Module], None]


class Asynchronous:
    """Ranks started by MPI: rank 0 holds the store, or its first shard; the others are shards and workers, or both."""

    name = "async"

    def __init__(self) -> None:
        """Initialises MPI. Collective over all ranks."""
        self.group = MpiGroup(init_mpi())

    def check(self, job: Job) -> None:
        """See `Strategy.check`: shards that the model has room for, and memory on every node."""
        rank = self.group.rank
        try:
            check_capacity(self.group, job.plans[rank].host, Plan(job).needs(rank))
        except HvdAsyncError as error:
            error.is_on_all_ranks = True  # each computes the same
            raise

    def execute(self, job: Job, loop: Loop) -> StopNotice | None:
        """See `Strategy.execute`."""
        from hvd_async.transport.mpi import open_blocks, open_node_block  # starts mpi4py, which init_mpi has configured

        rank, plan = self.group.rank, Plan(job)
        with contextlib.ExitStack() as stack:
            memories = stack.enter_context(
                open_blocks(self.group, plan.layouts, plan.owners, job.strategy.store_timeout_seconds)
            )
            team_block: SharedMemory | None = None
            if job.push.node_sum:
                team = plan.team_of_rank(rank)
                team_block = stack.enter_context(
                    open_node_block(self.group, plan.team_layout(team) if team else None, team[0].rank if team else 0)
                )
            reach = stack.enter_context(self._reach(plan, rank, memories))
            try:
                notice = RankRole(job, plan, rank, memories, reach, team_block).play(loop)
            except BaseException as error:
                # The others learn why this rank falls silent; the abort that follows ends them in any case. After a
                # PeerError they know, or the store cannot be reached.
                if not isinstance(error, PeerError):
                    memories[0].store(Word.STOP, StopNotice(StopKind.FAILURE, rank).to_word())
                raise
            # Workers that left early may not have seen why the others stopped; the store's word counts for all.
            word = self.group.exchange(str(0 if notice is None else notice.to_word()))[0]
        return StopNotice.from_word(int(word))

    def transport(self, plans: Sequence[RankPlan], rank: int) -> str:
        """See `Strategy.transport`."""
        if plans[rank].is_direct:
            return "CUDA IPC" if plans[rank].opens_store else "device memory"
        hosts = {plan.host for plan in plans if plan.shard is not None}
        near = plans[rank].host in hosts
        return "shared memory and RMA" if near and len(hosts) > 1 else "shared memory" if near else "RMA"

    def close(self) -> None:
        """See `Strategy.close`."""

    @contextlib.contextmanager
    def _reach(self, plan: Plan, rank: int, memories: Sequence[SharedMemory | RemoteMemory]) -> Iterator[Reach]:
        """The block of shard 0, as `rank` uses it. Collective where it is on a GPU."""
        if plan.is_on_device:
            slots = {each.rank: plan.slot_of(each.worker) for each in plan.workers if each.worker is not None}
            with open_device_block(self.group, plan.ranks, memories[0], slots) as reach:
                yield reach
        else:
            own = plan.ranks[rank].shard
            yield Reach(memories[0], None if own is None else cast(StoreMemory, memories[own]))  # its own block is mapped


class RankRole:
    """What one rank does in a run: hold a shard, train, or both."""

    def __init__(
        self,
        job: Job,
        plan: Plan,
        rank: int,
        memories: Sequence[SharedMemory | RemoteMemory],
        reach: Reach,
        team_block: SharedMemory | None,
    ) -> None:
        """All are the caller's; `memories[k]` reaches shard k, in the memory of its host."""
        self._job = job
        self._plan = plan
        self._me = job.plans[rank]
        self._memories = memories
        self._reach = reach
        self._team_block = team_block

    def play(self, loop: Loop) -> StopNotice | None:
        """Serve, train, or both, until the run ends; why it did."""
        if self._me.shard is None:
            return self._work(loop)
        serve = self._make_server()
        return serve() if self._me.worker is None else self._serve_and_work(serve, loop)

    def _make_server(self) -> Callable[[], StopNotice | None]:
        job, number, memory = self._job, self._me.shard, self._reach.store
        assert number is not None and memory is not None
        part = self._plan.parts[number]
        shard = make_shard(job, memory, part)
        cuda_ipc.finish(self._me.store_device or "cpu")  # a thread with another stream is to use it
        if number > 0:
            if job.saved is not None:
                tensors, data = job.saved
                shard.load({name: tensor[part] for name, tensor in tensors.items()}, data["version"])
            server = ShardServer(
                number,
                part,
                shard,
                memory,
                self._memories[0],
                job.strategy.store_timeout_seconds,
            )
            return lambda: server.serve(job.stop_requested)
        return lambda: self._serve(shard, memory)

    def _serve(self, shard: Shard, memory: StoreMemory) -> StopNotice | None:
        job, plan = self._job, self._plan
        others = [
            RemoteShard(number, plan.owners[number], self._memories[number], plan.parts[number])
            for number in range(1, len(plan.parts))
        ]
        if not others:
            store = job.make_store(shard, job.strategy, job.num_workers)
            notice = make_server(job, memory, store).serve(job.stop_requested)
            store.detach()  # what lies in the block is about to go, and the last version is still to be saved
            return notice
        group = ShardGroup(shard, memory, others, state_names(job.optimizer), job.strategy.store_timeout_seconds)
        group.meet()
        store = job.make_store(group, job.strategy, job.num_workers)
        server = make_server(job, memory, store)
        group.call_while_waiting(server.beat)
        notice = server.serve(job.stop_requested)
        store.detach()
        group.end()
        return notice

    def _work(self, loop: Loop) -> StopNotice | None:
        job, worker = self._job, self._me.worker
        assert worker is not None
        strategy = job.strategy
        waits = strategy.max_staleness is not None and strategy.on_stale == "wait"
        options = ClientOptions(
            waits_for_stragglers=waits,
            announces=waits or needs_base_parameters(strategy),
            store_timeout_seconds=strategy.store_timeout_seconds,
            claim_order=job.claim_order,
            push=job.push,
            pulls_provisional=strategy.has_provisional,
        )
        client = self._make_client(worker, options)
        client.join()
        exchange = self._make_exchange(client)
        host = HostCopy(job.flat, is_separate=job.push.overlap, is_direct=self._reach.is_direct)
        if job.push.overlap:
            with OverlappedWorker(job, client, exchange, host, worker) as overlapped:
                loop(overlapped, job.model)
        else:
            loop(AsynchronousWorker(job, client, exchange, host, worker), job.model)
        exchange.leave()
        return client.wait_for_end(job.stop_requested)

    def _make_client(self, worker: int, options: ClientOptions) -> StoreClient:
        error: torch.Tensor | None = None
        if self._team_block is not None and self._job.push.error_feedback:
            error = self._team_block.vector(self._team_block.layout.state_offset(ERROR))
        windows = [self._reach.worker, *self._memories[1:]]
        return StoreClient(windows, worker, options, self._plan.slot_of(worker), error)

    def _make_exchange(self, client: StoreClient) -> Exchange:
        strategy = self._job.strategy
        if self._team_block is None:
            return DirectExchange(client, strategy)
        ranks = [plan.rank for plan in self._plan.team_of_rank(self._me.rank)]

        def exchange(client: StoreClient, parameters: torch.Tensor) -> None:
            wait_and_pull(client, strategy, parameters)

        return TeamExchange(NodeTeam(self._team_block, ranks.index(self._me.rank), client, exchange), client, strategy)

    def _serve_and_work(self, serve: Callable[[], StopNotice | None], loop: Loop) -> StopNotice | None:
        """Colocated: the shard in a thread, the worker in this one. A failure of either ends the other."""
        failures: list[BaseException] = []
        notices: list[StopNotice | None] = []

        def run() -> None:
            try:
                cuda_ipc.use_own_stream(self._me.store_device or "cpu")
                notices.append(serve())
            except BaseException as error:
                failures.append(error)
                self._memories[0].store(Word.STOP, StopNotice(StopKind.FAILURE, self._me.rank).to_word())

        thread = threading.Thread(target=run, name="hvd-async-store", daemon=True)
        thread.start()
        try:
            self._work(loop)
        except PeerError:
            if failures:
                raise failures[0] from None
            raise
        thread.join()
        if failures:
            raise failures[0]
        return notices[0]


def make_shard(job: Job, memory: StoreMemory, part: slice) -> Shard:
    """The shard that holds `part` of the initial parameters, at version 0, in the buffers of `memory`."""
    layout = memory.layout
    buffers = [memory.vector(layout.published_offset(number)) for number in range(layout.num_buffers)]
    buffers[0].copy_(job.flat.parameters[part])
    names = state_names(job.optimizer)

    def in_block(name: str) -> torch.Tensor:
        return memory.vector(layout.state_offset(names.index(name)))

    warm_up(job.optimizer, DTYPES[layout.format.dtype], buffers[0].device)
    return Shard(
        buffers,
        job.optimizer,
        provisional=[memory.vector(layout.provisional_offset(number)) for number in range(layout.num_provisional)],
        keeps_bases=needs_base_parameters(job.strategy),
        allocate=in_block if layout.num_state_vectors else None,
    )


def warm_up(optimizer: OptimizerConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Compile what an update on a GPU needs before anybody waits for one; on the CPU nothing is compiled."""
    if device.type == "cpu":
        return
    shard = Shard([torch.zeros(64, device=device), torch.zeros(64, device=device)], optimizer)
    for _ in range(2):
        shard.hold(Gradient(torch.zeros(64, dtype=dtype, device=device), 0.0), 1.0)
    shard.step(StepOrder(version=1, learning_rate=1e-3, divisor=2.0))


def make_server(job: Job, memory: StoreMemory, store: ParameterStore) -> StoreServer:
    """The loop of the store's rank, to be served by the calling thread or another."""
    assert job.journal is not None  # the store's rank keeps the journal
    options = ServerOptions(
        last_version=job.last_version,
        first_evaluation=job.evaluation.next_after(store.version),
        evaluate_every=job.evaluation.every,
        worker_timeout_seconds=job.strategy.worker_timeout_seconds,
    )
    return StoreServer(store, memory, job.journal, options)
