"""The asynchronous strategy: a parameter store in memory, workers that push and pull when they are ready."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from hvd_async import kernels
from hvd_async.config import OptimizerConfig
from hvd_async.errors import ConfigError, HvdAsyncError, PeerError
from hvd_async.flat import FlatParameters
from hvd_async.store.client import IDLE, ClientOptions, StoreClient
from hvd_async.store.gradient import Gradient
from hvd_async.store.node_team import NodeTeam, team_layout
from hvd_async.store.parameter_store import Arrival, ParameterStore
from hvd_async.store.schedule import is_synchronous
from hvd_async.store.server import ServerOptions, StoreServer
from hvd_async.store.shard import Shard, StepOrder, state_names
from hvd_async.store.shard_group import RemoteShard, ShardGroup
from hvd_async.store.shard_server import ShardServer
from hvd_async.store.slots import DTYPES, slot_format, split
from hvd_async.store.staleness import needs_base_parameters
from hvd_async.strategies.exchange import DirectExchange, Exchange, TeamExchange, wait_and_pull
from hvd_async.strategies.protocol import Claim, EvaluationRequest, Job, Step, Worker
from hvd_async.topology import RankPlan
from hvd_async.transport import cuda_ipc
from hvd_async.transport.bootstrap import MpiGroup, init_mpi
from hvd_async.transport.capacity import Need, check_capacity
from hvd_async.transport.device_block import Reach, open_device_block
from hvd_async.transport.layout import Layout, StopKind, StopNotice, Word
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

    def execute(self, job: Job, loop: Loop) -> StopNotice | None:
        """See `Strategy.execute`."""
        from hvd_async.transport.mpi import open_blocks, open_node_block  # starts mpi4py, which init_mpi has configured

        rank = self.group.rank
        try:
            plan = Plan(job)
            check_capacity(self.group, job.plans[rank].host, plan.needs(rank))
        except HvdAsyncError as error:
            error.is_on_all_ranks = True  # each computes the same
            raise
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


class Plan:
    """Who holds what: pure arithmetic on a job, the same on every rank."""

    def __init__(self, job: Job) -> None:
        """`job` stays the caller's."""
        self._job = job
        shards = sorted((plan for plan in job.plans if plan.shard is not None), key=lambda plan: plan.shard or 0)
        most = -(-job.flat.size // kernels.BLOCK)
        if len(shards) > most:
            raise ConfigError(
                f"store.shards: got {len(shards)} for a model of {job.flat.size} elements, expected at most {most}:"
                f" each holds whole blocks of {kernels.BLOCK}"
            )
        self.ranks = job.plans
        self.owners = [plan.rank for plan in shards]
        self.is_on_device = any(plan.store_device not in (None, "cpu") for plan in shards)
        self.parts = split(job.flat.size, len(shards))
        self.workers = [plan for plan in job.plans if plan.worker is not None]
        hosts = list(dict.fromkeys(plan.host for plan in self.workers))
        self.teams = [[plan for plan in self.workers if plan.host == host] for host in hosts]
        self.layouts = [self._layout(number, part) for number, part in enumerate(self.parts)]

    def slot_of(self, worker: int) -> int:
        """The slot into which a worker's gradients go."""
        if not self._job.push.node_sum:
            return worker
        return next(n for n, team in enumerate(self.teams) if any(plan.worker == worker for plan in team))

    def team_of_rank(self, rank: int) -> list[RankPlan]:
        """The workers of the node of `rank`; empty where there are none."""
        host = self._job.plans[rank].host
        return [plan for plan in self.workers if plan.host == host]

    def team_layout(self, team: Sequence[RankPlan]) -> Layout:
        """The block that `team` shares."""
        return team_layout(self._job.flat.size, len(team), self._job.push.error_feedback)

    def needs(self, rank: int) -> list[Need]:
        """The memory that `rank` is about to ask for."""
        job, plan = self._job, self._job.plans[rank]
        vector_bytes = 4 * job.flat.size
        needs = []
        if plan.shard is not None:
            layout = self.layouts[plan.shard]
            name = "store" if len(self.parts) == 1 else f"shard {plan.shard}"
            needs += [
                Need(f"{name}: {layout.num_buffers} published copies", layout.num_buffers * layout.vector_bytes, True),
                Need(f"{name}: {layout.slots} slots in {job.push.dtype}", layout.slots * layout.slot_bytes, True),
            ]
            num_vectors, part_bytes = len(state_names(job.optimizer)), layout.vector_bytes
            is_shared = layout.num_state_vectors > 0
            if not self.is_on_device:
                needs.append(Need(f"{name}: {num_vectors} vectors of the optimizer", num_vectors * part_bytes, is_shared))
        if plan.worker is not None:
            team = self.team_of_rank(rank)
            if job.push.node_sum and team[0].rank == rank:
                total = self.team_layout(team).total_bytes
                needs.append(Need(f"{len(team)} workers of the node: their sum and slots", total, True))
            if job.push.overlap:
                needs.append(Need("overlap: a gradient and parameters on their way", 2 * vector_bytes, False))
            if job.push.error_feedback:
                needs.append(Need("error feedback: error, sum and what is sent", 3 * vector_bytes, False))
        return needs

    def _layout(self, number: int, part: slice) -> Layout:
        job, num_shards = self._job, len(self.parts)
        return Layout(
            num_elements=part.stop - part.start,
            num_workers=len(self.workers),
            num_buffers=job.store.published_buffers,
            num_slots=len(self.teams) if job.push.node_sum else len(self.workers),
            arrivals_per_slot=max(map(len, self.teams)) if job.push.node_sum else 1,
            slot_format=slot_format(job.flat.size, part, job.push),
            num_shards=num_shards,
            # The sequencer reads them for a checkpoint.
            num_state_vectors=len(state_names(job.optimizer)) if num_shards > 1 else 0,
            num_partials=-(-job.flat.size // kernels.BLOCK) if num_shards > 1 and number == 0 else 0,
        )


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
            error = self._team_block.vector(self._team_block.layout.state_offset(1))
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

    def allocate(name: str) -> torch.Tensor:
        if layout.num_state_vectors == 0:
            return torch.zeros(layout.num_elements, device=buffers[0].device)
        return memory.vector(layout.state_offset(names.index(name)))

    warm_up(job.optimizer, DTYPES[layout.format.dtype], buffers[0].device)
    return Shard(buffers, job.optimizer, keeps_bases=needs_base_parameters(job.strategy), allocate=allocate)


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


def ask_to_stop(job: Job, client: StoreClient) -> bool:
    """Whether this worker is to stop; passes on what was asked of this rank."""
    requested = job.stop_requested()
    if requested is not None:
        client.request_stop(requested)
    return client.stop_notice() is not None


def claim(job: Job, client: StoreClient) -> int | None:
    """The next batch; None where there is none or the run stops."""
    if ask_to_stop(job, client):
        return None
    batch = client.claim()
    return None if job.num_batches is not None and batch >= job.num_batches else batch


class AsynchronousWorker:
    """Claims batches, pushes gradients, pulls parameters; waits for others only where the strategy says so."""

    def __init__(self, job: Job, client: StoreClient, exchange: Exchange, host: HostCopy, worker: int) -> None:
        """`client` has joined the store; it, `exchange` and `host` stay the caller's."""
        self._job = job
        self._client = client
        self._exchange = exchange
        self._worker = worker
        self._host = host
        self._version = -1

    def claims(self) -> Iterator[Claim]:
        """See `Worker.claims`."""
        self._come()
        while (batch := claim(self._job, self._client)) is not None:
            yield Claim(batch)

    def step(self, step: Step) -> None:
        """See `Worker.step`."""
        before = self._version
        arrival = Arrival(self._worker, step.batch, before, step.tokens, step.loss, step.seconds)
        self._version = self._exchange.exchange(self._host.gradient(), arrival, self._host.parameters)
        if self._version != before:
            self._host.load_parameters()

    def evaluation_due(self) -> EvaluationRequest | None:
        """See `Worker.evaluation_due`: whoever asks first takes it; the others do not notice."""
        version = self._client.take_evaluation() if self._job.evaluation.every else None
        if version is None:
            return None
        self._exchange.pause()
        return EvaluationRequest(version, self._job.evaluation.snapshot(version))

    def report(self, request: EvaluationRequest, statistics: Sequence[float]) -> None:
        """See `Worker.report`."""
        self._client.report_evaluation(request.version, statistics)
        self._come()  # others have gone on meanwhile

    def _come(self) -> None:
        self._version = self._exchange.come(self._host.parameters)
        self._host.load_parameters()


@dataclass(frozen=True)
class Outcome:
    """What the exchange beside a step brought: the version that was pulled, the batch after next, an evaluation to do."""

    version: int
    batch: int | None
    evaluation: int | None


class OverlappedWorker:
    """As `AsynchronousWorker`, but a thread pushes and pulls while the next batch is computed.

    That batch is computed on what the exchange before brought, so its gradient is one exchange older, which its base version
    says. Everything that touches the store is done by that one thread. A context manager.
    """

    def __init__(self, job: Job, client: StoreClient, exchange: Exchange, host: HostCopy, worker: int) -> None:
        """`client` has joined the store; it, `exchange` and `host`, which is separate, stay the caller's."""
        self._job = job
        self._client = client
        self._exchange = exchange
        self._worker = worker
        self._host = host
        self._gradient = torch.empty_like(host.parameters)
        self._version = -1
        self._batches: deque[int | None] = deque()  # claimed ahead; None: there are no more
        self._under_way: Future[Outcome] | None = None
        self._evaluation: int | None = None

    def __enter__(self) -> OverlappedWorker:
        """Start the thread."""
        # On the stream of the model its copies would wait for all of the next batch.
        self._thread = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="hvd-async-exchange",
            initializer=cuda_ipc.use_own_stream,
            initargs=(self._host.parameters.device,),
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the thread. It ends, since every wait for the store does."""
        self._thread.shutdown(wait=True)

    def claims(self) -> Iterator[Claim]:
        """See `Worker.claims`."""
        self._come()
        for _ in range(2):
            self._batches.append(self._thread.submit(claim, self._job, self._client).result())
        while (batch := self._batches.popleft()) is not None:
            yield Claim(batch)

    def step(self, step: Step) -> None:
        """See `Worker.step`."""
        arrival = Arrival(self._worker, step.batch, self._version, step.tokens, step.loss, step.seconds)
        self._settle()
        kernels.copy(self._host.gradient(), self._gradient)
        waits = self._batches[0] is None or is_synchronous(self._job.strategy, self._version)
        self._under_way = self._thread.submit(self._bring, arrival, IDLE if waits else self._version)
        if waits:
            self._settle()

    def evaluation_due(self) -> EvaluationRequest | None:
        """See `Worker.evaluation_due`."""
        if self._evaluation is None:
            return None
        self._settle()
        version, self._evaluation = self._evaluation, None
        self._thread.submit(self._exchange.pause).result()
        return EvaluationRequest(version, self._job.evaluation.snapshot(version))

    def report(self, request: EvaluationRequest, statistics: Sequence[float]) -> None:
        """See `Worker.report`."""
        self._thread.submit(self._client.report_evaluation, request.version, statistics).result()
        self._come()

    def _bring(self, arrival: Arrival, computing: int) -> Outcome:
        version = self._exchange.exchange(self._gradient, arrival, self._host.parameters, computing)
        evaluation = None
        if self._job.evaluation.every and self._evaluation is None:
            evaluation = self._client.take_evaluation()
        return Outcome(version, claim(self._job, self._client), evaluation)

    def _settle(self) -> None:
        """Wait for the exchange that is under way, if one is, and compute with what it brought from now on."""
        if self._under_way is None:
            return
        outcome, self._under_way = self._under_way.result(), None
        self._batches.append(outcome.batch)
        if outcome.evaluation is not None:
            self._evaluation = outcome.evaluation
        if outcome.version != self._version:
            self._version = outcome.version
            self._host.load_parameters()

    def _come(self) -> None:
        self._version = self._thread.submit(self._exchange.come, self._host.parameters).result()
        self._host.load_parameters()


class HostCopy:
    """The flat vectors where the store's windows take them: themselves, or pinned copies of those of a GPU.

    Every copy is complete on return: the exchange, perhaps another thread on another stream, reads a gradient that is whole, and
    overwrites `parameters` only when the model has them.
    """

    def __init__(self, flat: FlatParameters, is_separate: bool = False, is_direct: bool = False) -> None:
        """Allocates the pinned copies, if there is to be any. `is_separate`: `parameters` is never the vector that the model
        reads, so that it may change while the model computes. `is_direct`: windows take vectors of the GPU."""
        self._flat = flat
        self._is_pinned = flat.parameters.device.type != "cpu" and not is_direct
        self._is_copy = self._is_pinned or is_separate
        self.parameters = flat.parameters
        if self._is_pinned:
            self.parameters = self._pinned(flat.parameters)
        elif is_separate:
            self.parameters = torch.empty_like(flat.parameters)
            # Another stream is the first to write there, and this one may still use what the memory held before.
            cuda_ipc.finish(self.parameters.device)
        self._gradient = self._pinned(flat.gradient) if self._is_pinned else flat.gradient

    def gradient(self) -> torch.Tensor:
        """The gradient, where `parameters` are: [size], float32; valid until the next step."""
        gradient = self._flat.collect_gradient()
        if self._is_pinned:
            kernels.copy(gradient, self._gradient)
            return self._gradient
        return gradient

    def load_parameters(self) -> None:
        """Give the model what was pulled into `parameters`."""
        if self._is_copy:
            kernels.copy(self.parameters, self._flat.parameters)

    @staticmethod
    def _pinned(vector: torch.Tensor) -> torch.Tensor:
        return torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
