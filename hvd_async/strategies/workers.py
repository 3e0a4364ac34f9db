"""The workers of the asynchronous strategy: one that waits while it pushes and pulls, and one that computes meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from hvd_async.store.arrival import Arrival
from hvd_async.store.schedule import is_synchronous
from hvd_async.store.serve.client import IDLE, NO_BASE, Base, StoreClient
from hvd_async.strategies.protocol import Claim, EvaluationRequest, Job, Step
from hvd_async.strategies.push_pull import PushPull, Took
from hvd_async.transport import cuda_ipc
from hvd_async.vectors import arithmetic
from hvd_async.vectors.flat import FlatParameters


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


def describe(worker: int, step: Step, base: Base, took: Took) -> Arrival:
    """The arrival of `step`, computed on `base`; `took` is of the exchange before."""
    return Arrival(
        worker,
        step.batch,
        base.version,
        step.tokens,
        step.loss,
        step.seconds,
        took.push_seconds,
        took.wait_seconds,
        took.pull_seconds,
        base.provisional,
    )


class AsynchronousWorker:
    """Claims batches, pushes gradients, pulls parameters; waits for others only where the strategy says so."""

    def __init__(self, job: Job, client: StoreClient, push_pull: PushPull, host: HostCopy, worker: int) -> None:
        """`client` has joined the store; it, `push_pull` and `host` stay the caller's."""
        self._job = job
        self._client = client
        self._push_pull = push_pull
        self._worker = worker
        self._host = host
        self._base = NO_BASE

    def claims(self) -> Iterator[Claim]:
        """See `Worker.claims`."""
        self._start()
        while (batch := claim(self._job, self._client)) is not None:
            yield Claim(batch)

    def step(self, step: Step) -> None:
        """See `Worker.step`."""
        before = self._base
        arrival = describe(self._worker, step, before, self._push_pull.took)
        self._base = self._push_pull.push_pull(self._host.gradient(), arrival, self._host.parameters)
        if self._base != before:
            self._host.load_parameters()

    def evaluation_due(self) -> EvaluationRequest | None:
        """See `Worker.evaluation_due`: whoever asks first takes it; the others do not notice."""
        version = self._client.take_evaluation() if self._job.evaluation.every else None
        if version is None:
            return None
        self._push_pull.pause()
        return EvaluationRequest(version, self._job.evaluation.snapshot(version))

    def report(self, request: EvaluationRequest, statistics: Sequence[float]) -> None:
        """See `Worker.report`."""
        self._client.report_evaluation(request.version, statistics)
        self._start()  # others have gone on meanwhile

    def _start(self) -> None:
        self._base = self._push_pull.start(self._host.parameters)
        self._host.load_parameters()


@dataclass(frozen=True)
class Brought:
    """What the exchange beside a step brought: what was pulled, batches claimed ahead, an evaluation to do."""

    base: Base
    batches: tuple[int | None, ...]
    evaluation: int | None
    took: Took


class OverlappedWorker:
    """As `AsynchronousWorker`, but a thread pushes and pulls while the next batch is computed.

    That batch is computed on what the exchange before brought, so its gradient is one exchange older, which its base version
    says. Everything that touches the store is done by that one thread. A context manager.
    """

    def __init__(self, job: Job, client: StoreClient, push_pull: PushPull, host: HostCopy, worker: int) -> None:
        """`client` has joined the store; it, `push_pull` and `host`, which is separate, stay the caller's."""
        self._job = job
        self._client = client
        self._push_pull = push_pull
        self._worker = worker
        self._host = host
        self._gradient = torch.empty_like(host.parameters)
        self._base = NO_BASE
        self._took = Took()
        self._batches: deque[int | None] = deque()  # claimed ahead; None: there are no more
        self._under_way: Future[Brought] | None = None
        self._evaluation: int | None = None

    def __enter__(self) -> OverlappedWorker:
        """Start the thread."""
        # On the stream of the model its copies would wait for all of the next batch.
        self._thread = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="hvd-async-push-pull",
            initializer=cuda_ipc.use_own_stream,
            initargs=(self._host.parameters.device,),
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the thread. It ends, since every wait for the store does."""
        self._thread.shutdown(wait=True)

    def claims(self) -> Iterator[Claim]:
        """See `Worker.claims`."""
        self._start()
        self._claim_ahead()
        while (batch := self._batches.popleft()) is not None:
            yield Claim(batch)

    def step(self, step: Step) -> None:
        """See `Worker.step`."""
        arrival = describe(self._worker, step, self._base, self._took)
        self._settle()
        arithmetic.copy(self._host.gradient(), self._gradient)
        waits = not self._batches or self._batches[0] is None or is_synchronous(self._job.strategy, self._base.version)
        self._under_way = self._thread.submit(self._bring, arrival, IDLE if waits else self._base.version)
        if waits:
            self._settle()
            self._claim_ahead()

    def evaluation_due(self) -> EvaluationRequest | None:
        """See `Worker.evaluation_due`."""
        if self._evaluation is None:
            return None
        self._settle()
        version, self._evaluation = self._evaluation, None
        self._thread.submit(self._push_pull.pause).result()
        return EvaluationRequest(version, self._job.evaluation.snapshot(version))

    def report(self, request: EvaluationRequest, statistics: Sequence[float]) -> None:
        """See `Worker.report`."""
        self._thread.submit(self._client.report_evaluation, request.version, statistics).result()
        self._start()

    def _bring(self, arrival: Arrival, computing: int) -> Brought:
        base = self._push_pull.push_pull(self._gradient, arrival, self._host.parameters, computing)
        evaluation = None
        if self._job.evaluation.every and self._evaluation is None:
            evaluation = self._client.take_evaluation()
        # Where the worker waits for this, it claims by itself, knowing the version.
        batches = (claim(self._job, self._client),) if computing != IDLE else ()
        return Brought(base, batches, evaluation, self._push_pull.took)

    def _settle(self) -> None:
        """Wait for the exchange that is under way, if one is, and compute with what it brought from now on."""
        if self._under_way is None:
            return
        outcome, self._under_way = self._under_way.result(), None
        self._took = outcome.took
        self._batches.extend(outcome.batches)
        if outcome.evaluation is not None:
            self._evaluation = outcome.evaluation
        if outcome.base != self._base:
            self._base = outcome.base
            self._host.load_parameters()

    def _claim_ahead(self) -> None:
        """So many batches that there is one to compute meanwhile; in lock-step, where arrivals are taken in the order of their
        batches, none that others would have to wait for."""
        wanted = 1 if is_synchronous(self._job.strategy, self._base.version) else 2
        while len(self._batches) < wanted and (not self._batches or self._batches[-1] is not None):
            self._batches.append(self._thread.submit(claim, self._job, self._client).result())

    def _start(self) -> None:
        self._base = self._thread.submit(self._push_pull.start, self._host.parameters).result()
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
            arithmetic.copy(gradient, self._gradient)
            return self._gradient
        return gradient

    def load_parameters(self) -> None:
        """Give the model what was pulled into `parameters`."""
        if self._is_copy:
            arithmetic.copy(self.parameters, self._flat.parameters)

    @staticmethod
    def _pinned(vector: torch.Tensor) -> torch.Tensor:
        return torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
