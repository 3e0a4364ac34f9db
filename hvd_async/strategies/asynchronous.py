"""The asynchronous strategy: a parameter store on rank 0, workers that push and pull when they are ready."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from hvd_async.errors import PeerError
from hvd_async.flat import FlatParameters
from hvd_async.store.client import ClientOptions, StoreClient
from hvd_async.store.parameter_store import Arrival
from hvd_async.store.schedule import is_synchronous
from hvd_async.store.server import ServerOptions, StoreServer
from hvd_async.strategies.protocol import Claim, EvaluationRequest, Job, Step, Worker
from hvd_async.topology import RankPlan
from hvd_async.transport.bootstrap import MpiGroup, init_mpi
from hvd_async.transport.layout import Layout, StopKind, StopNotice, Word
from hvd_async.transport.window import StoreMemory, Window

if TYPE_CHECKING:
    from hvd_async.transport.mpi import RemoteMemory, SharedMemory


class Asynchronous:
    """Ranks started by MPI: rank 0 holds the store, the others (and, colocated, rank 0 too) are workers."""

    name = "async"

    def __init__(self) -> None:
        """Initialises MPI. Collective over all ranks."""
        self.group = MpiGroup(init_mpi())

    def execute(self, job: Job, loop: Callable[[Worker, torch.nn.Module], None]) -> StopNotice | None:
        """See `Strategy.execute`."""
        from hvd_async.transport.mpi import open_block  # starts mpi4py, which init_mpi has configured

        layout = Layout(job.flat.size, job.num_workers, job.strategy.published_buffers)
        with open_block(self.group, layout, job.strategy.store_timeout_seconds) as memory:
            try:
                notice = self._play(job, memory, loop)
            except BaseException as error:
                # The others learn why this rank falls silent; the abort that follows ends them in any case. After a
                # PeerError they know, or the store cannot be reached.
                if not isinstance(error, PeerError):
                    memory.store(Word.STOP, StopNotice(StopKind.FAILURE, self.group.rank).to_word())
                raise
            # Workers that left early may not have seen why the others stopped; the store's word counts for all.
            word = self.group.exchange(str(0 if notice is None else notice.to_word()))[0]
        return StopNotice.from_word(int(word))

    def transport(self, plans: Sequence[RankPlan], rank: int) -> str:
        """See `Strategy.transport`."""
        return "shared memory" if plans[rank].host == plans[0].host else "RMA"

    def _play(
        self, job: Job, memory: SharedMemory | RemoteMemory, loop: Callable[[Worker, torch.nn.Module], None]
    ) -> StopNotice | None:
        from hvd_async.transport.mpi import SharedMemory

        plan = job.plans[self.group.rank]
        if plan.role == "worker":
            assert plan.worker is not None
            return work(job, memory, plan.worker, loop)
        assert isinstance(memory, SharedMemory)  # the store's rank shares memory with itself
        if plan.role == "store":
            return make_server(job, memory, job.flat.parameters).serve(job.stop_requested)
        return serve_and_work(job, memory, loop)

    def close(self) -> None:
        """See `Strategy.close`."""


def make_server(job: Job, memory: StoreMemory, parameters: torch.Tensor) -> StoreServer:
    """The store and its loop, to be served by the calling thread or another. `parameters` becomes the store's own."""
    assert job.journal is not None  # the store's rank keeps the journal
    store = job.make_store(job.strategy, job.num_workers, parameters.cpu())
    options = ServerOptions(
        last_version=job.last_version,
        first_evaluation=job.evaluation.next_after(store.version),
        evaluate_every=job.evaluation.every,
        worker_timeout_seconds=job.strategy.worker_timeout_seconds,
    )
    return StoreServer(store, memory, job.journal, options)


def work(job: Job, window: Window, worker: int, loop: Callable[[Worker, torch.nn.Module], None]) -> StopNotice | None:
    """Run `loop` as worker number `worker`, from joining the store to leaving it."""
    options = ClientOptions(
        waits_for_stragglers=job.strategy.max_staleness is not None and job.strategy.on_stale == "wait",
        store_timeout_seconds=job.strategy.store_timeout_seconds,
        claim_order=job.claim_order,
    )
    client = StoreClient(window, worker, options)
    client.join()
    loop(AsynchronousWorker(job, client, worker), job.model)
    client.leave()
    return client.wait_for_end(job.stop_requested)


def serve_and_work(job: Job, memory: StoreMemory, loop: Callable[[Worker, torch.nn.Module], None]) -> StopNotice | None:
    """Colocated: the store in a thread, worker 0 in this one. A failure of either ends the other."""
    server = make_server(job, memory, job.flat.parameters.clone())
    failures: list[BaseException] = []
    notices: list[StopNotice | None] = []

    def serve() -> None:
        try:
            notices.append(server.serve(job.stop_requested))
        except BaseException as error:
            failures.append(error)
            memory.store(Word.STOP, StopNotice(StopKind.FAILURE, 0).to_word())

    thread = threading.Thread(target=serve, name="hvd-async-store", daemon=True)
    thread.start()
    try:
        work(job, memory, 0, loop)
    except PeerError:
        if failures:
            raise failures[0] from None
        raise
    thread.join()
    if failures:
        raise failures[0]
    return notices[0]


class AsynchronousWorker:
    """Claims batches, pushes gradients, pulls parameters; waits for others only where the strategy says so."""

    def __init__(self, job: Job, client: StoreClient, worker: int) -> None:
        """`client` has joined the store and stays the caller's."""
        self._job = job
        self._client = client
        self._worker = worker
        self._host = HostCopy(job.flat)

    def claims(self) -> Iterator[Claim]:
        """See `Worker.claims`."""
        self._pull()
        while not self._must_stop():
            batch = self._client.claim()
            if self._job.num_batches is not None and batch >= self._job.num_batches:
                return
            yield Claim(batch)

    def step(self, step: Step) -> None:
        """See `Worker.step`."""
        base_version = self._client.version
        arrival = Arrival(self._worker, step.batch, base_version, step.tokens, step.loss, step.seconds)
        self._client.push(self._host.gradient(), arrival)
        if is_synchronous(self._job.strategy, base_version):
            self._client.wait_released()
        else:
            # A worker computes on parameters that know its own gradient: with one worker and N = 1 nothing is ever stale.
            self._client.wait_drained()
        self._pull()

    def evaluation_due(self) -> EvaluationRequest | None:
        """See `Worker.evaluation_due`: whoever asks first takes it; the others do not notice."""
        version = self._client.take_evaluation() if self._job.evaluation.every else None
        return None if version is None else EvaluationRequest(version, self._job.evaluation.snapshot(version))

    def report(self, request: EvaluationRequest, statistics: Sequence[float]) -> None:
        """See `Worker.report`."""
        self._client.report_evaluation(request.version, statistics)
        self._pull()  # others have gone on meanwhile

    def _must_stop(self) -> bool:
        requested = self._job.stop_requested()
        if requested is not None:
            self._client.request_stop(requested)
        return self._client.stop_notice() is not None

    def _pull(self) -> None:
        before = self._client.version
        if self._client.pull(self._host.parameters) != before:
            self._host.load_parameters()


class HostCopy:
    """The flat vectors where MPI can reach them: themselves on a CPU, pinned copies for a GPU."""

    def __init__(self, flat: FlatParameters) -> None:
        """Allocates the pinned copies, if there is to be any."""
        self._flat = flat
        self._is_device = flat.parameters.device.type != "cpu"
        self.parameters = self._pinned(flat.parameters) if self._is_device else flat.parameters
        self._gradient = self._pinned(flat.gradient) if self._is_device else flat.gradient

    def gradient(self) -> torch.Tensor:
        """The gradient, on the CPU: [size], float32; valid until the next step."""
        gradient = self._flat.collect_gradient()
        return self._gradient.copy_(gradient) if self._is_device else gradient

    def load_parameters(self) -> None:
        """Give the model what was pulled into `parameters`."""
        if self._is_device:
            self._flat.parameters.copy_(self.parameters)

    @staticmethod
    def _pinned(vector: torch.Tensor) -> torch.Tensor:
        return torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
