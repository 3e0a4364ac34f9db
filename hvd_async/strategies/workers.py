"""The workers of the asynchronous strategy: one waits while it pushes and pulls, the other computes meanwhile."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from hvd_async.store.arrival import Arrival
from hvd_async.store.schedule import is_synchronous
from hvd_async.store.serve.client import StoreClient
from hvd_async.store.serve.readings import NO_BASE, Base
from hvd_async.store.wire.layout import IDLE, MAX_HELD
from hvd_async.strategies.protocol import Claim, EvaluationRequest, Job, Step
from hvd_async.strategies.push_pull import PushPull, Took
from hvd_async.transport import cuda_ipc
from hvd_async.vectors import arithmetic
from hvd_async.vectors.flat import FlatParameters


def ask_to_stop(job: Job, client: StoreClient) -> bool:
    """Whether this worker is to stop or to leave; passes on a stop request of this rank."""
    requested = job.stop_requested()
    if requested is not None:
        client.request_stop(requested)
    return client.stop_notice() is not None or job.leave_requested()


def claim(job: Job, client: StoreClient) -> int | None:
    """Return the next batch; None if there is none or the run stops."""
    if ask_to_stop(job, client):
        return None
    batch = client.claim()
    if job.num_batches is not None and batch >= job.num_batches:
        client.let_go(batch)
        return None
    return batch


def num_ahead(job: Job) -> int:
    """Return how many batches a worker claims ahead of time, of all that it may hold."""
    return min(job.num_batches_ahead, MAX_HELD - 4)  # besides those that it computes, and that overlap claims


def describe(worker: int, step: Step, base: Base, took: Took, later: Sequence[Base] = ()) -> Arrival:
    """Return the arrival of `step`, computed on `base`, its later micro-batches on those in `later`; `took` are the times of
    the previous push and pull."""
    return Arrival(
        worker=worker,
        batch=step.batch,
        base_version=base.version,
        weight=step.weight,
        loss=step.loss,
        step_seconds=step.seconds,
        push_seconds=took.push_seconds,
        wait_seconds=took.wait_seconds,
        pull_seconds=took.pull_seconds,
        provisional=base.provisional,
        later_bases=tuple((each.version, each.provisional) for each in later),
    )


class AsynchronousWorker:
    """Claims batches, pushes gradients and pulls parameters; waits for others only if the strategy requires it."""

    def __init__(self, job: Job, client: StoreClient, push_pull: PushPull, host: HostCopy, worker: int) -> None:
        """`client`, which has joined the store, `push_pull` and `host` stay the caller's."""
        self._job = job
        self._client = client
        self._push_pull = push_pull
        self._worker = worker
        self._host = host
        self._base = NO_BASE
        self._later: list[Base] = []  # of micro-batches of this step
        self._pulled_between = 0.0  # seconds of the pulls between them
        self._ahead: deque[int] = deque()  # claimed ahead
        self._are_all_claimed = False

    def claims(self) -> Iterator[Claim]:
        self._start()
        while True:
            was_asked = not self._ahead  # by the claim of the next batch
            self._claim_ahead()
            if not self._ahead and not self._wait_for_returned():
                return
            if not was_asked and ask_to_stop(self._job, self._client):
                return
            yield Claim(self._ahead.popleft(), upcoming=tuple(self._ahead))

    def claims_after_leaving(self) -> Iterator[Claim]:
        return iter(())  # the others get what this worker had claimed

    def pull_newer(self) -> None:
        began, before = time.monotonic(), self._later[-1] if self._later else self._base
        now = before
        if not is_synchronous(self._job.strategy, before.version):
            now = self._push_pull.pull_newer(self._host.parameters, self._base.version)
            if now != before:
                self._host.load_parameters()
                torch.clear_autocast_cache()  # which may hold the parameters of before in another precision
        self._later.append(now)
        self._pulled_between += time.monotonic() - began

    def step(self, step: Step) -> None:
        before = self._later[-1] if self._later else self._base
        took = self._push_pull.took
        took = dataclasses.replace(took, pull_seconds=took.pull_seconds + self._pulled_between)
        arrival = describe(self._worker, step, self._base, took, self._later)
        self._later, self._pulled_between = [], 0.0
        self._base = self._push_pull.push_pull(self._host.gradient(), arrival, self._host.parameters)
        if self._base != before:
            self._host.load_parameters()

    def evaluation_due(self) -> EvaluationRequest | None:
        """Return the due evaluation if this worker is the first to ask for it; the others continue to train."""
        version = self._client.take_evaluation() if self._job.evaluation.every else None
        if version is None:
            return None
        self._push_pull.pause()
        return EvaluationRequest(version, self._job.evaluation.snapshot(version))

    def report(self, request: EvaluationRequest, statistics: Sequence[float]) -> None:
        self._client.report_evaluation(request.version, statistics)
        self._start()  # there are newer versions by now

    def _claim_ahead(self) -> None:
        """Claim the next batch, and as many more as the job wants to know ahead of time; none in lock-step, where others would
        have to wait for them."""
        is_alone = is_synchronous(self._job.strategy, self._base.version)
        wanted = 1 if is_alone else 1 + num_ahead(self._job)
        while len(self._ahead) < wanted and not self._are_all_claimed:
            batch = claim(self._job, self._client)
            if batch is None:
                self._are_all_claimed = True
            else:
                self._ahead.append(batch)

    def _wait_for_returned(self) -> bool:
        """Wait for a batch that another worker returns; return whether there is one."""
        batch = self._push_pull.wait_for_returned(self._job.stop_requested)
        if batch is None:
            return False
        self._ahead.append(batch)
        self._start()
        return True

    def _start(self) -> None:
        self._base = self._push_pull.start(self._host.parameters)
        self._host.load_parameters()


@dataclass(frozen=True)
class Brought:
    """Result of a push and pull during a step: the base pulled, batches claimed ahead, an evaluation to make, and whether the
    run stops."""

    base: Base
    batches: tuple[int | None, ...]
    evaluation: int | None
    took: Took
    is_stopped: bool


class OverlappedWorker:
    """Worker with a thread that pushes and pulls while the next batch is computed; a context manager.

    This batch is computed on the result of the previous pull, so its gradient is one pull older, as its base version shows.
    Only the thread accesses the store.
    """

    def __init__(self, job: Job, client: StoreClient, push_pull: PushPull, host: HostCopy, worker: int) -> None:
        """`client`, which has joined the store, `push_pull` and `host`, which is separate, stay the caller's."""
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
        self._is_stopped = False

    def __enter__(self) -> OverlappedWorker:
        """Start the thread."""
        # On the stream of the model, the thread's copies would wait for the whole next batch.
        self._thread = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="hvd-async-push-pull",
            initializer=cuda_ipc.use_own_stream,
            initargs=(self._host.parameters.device,),
        )
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the thread, which ends because every wait for the store is limited."""
        self._thread.shutdown(wait=True)

    def claims(self) -> Iterator[Claim]:
        self._start()
        self._claim_ahead()
        while not self._is_stopped:
            if self._batches[0] is None and not self._wait_for_returned():
                break
            batch = self._batches.popleft()
            assert batch is not None
            yield Claim(batch, upcoming=tuple(each for each in self._batches if each is not None))
        self._settle()

    def claims_after_leaving(self) -> Iterator[Claim]:
        return iter(())  # the others get what this worker had claimed

    def pull_newer(self) -> None:
        """Not with overlap: the configuration refuses micro-batches then."""
        raise AssertionError("unreachable")

    def step(self, step: Step) -> None:
        arrival = describe(self._worker, step, self._base, self._took)
        self._settle()
        arithmetic.copy(self._host.gradient(), self._gradient)
        waits = not self._batches or self._batches[0] is None or is_synchronous(self._job.strategy, self._base.version)
        self._under_way = self._thread.submit(self._bring, arrival, IDLE if waits else self._base.version)
        if waits:
            self._settle()
            self._claim_ahead()

    def evaluation_due(self) -> EvaluationRequest | None:
        if self._evaluation is None:
            return None
        self._settle()
        version, self._evaluation = self._evaluation, None
        self._thread.submit(self._push_pull.pause).result()
        return EvaluationRequest(version, self._job.evaluation.snapshot(version))

    def report(self, request: EvaluationRequest, statistics: Sequence[float]) -> None:
        self._thread.submit(self._client.report_evaluation, request.version, statistics).result()
        self._start()

    def _bring(self, arrival: Arrival, computing: int) -> Brought:
        base = self._push_pull.push_pull(self._gradient, arrival, self._host.parameters, computing)
        evaluation = None
        if self._job.evaluation.every and self._evaluation is None:
            evaluation = self._client.take_evaluation()
        # A worker that waits for this result claims its batches afterwards, when it knows the version.
        batches = (claim(self._job, self._client),) if computing != IDLE else ()
        return Brought(base, batches, evaluation, self._push_pull.took, ask_to_stop(self._job, self._client))

    def _settle(self) -> None:
        """Wait for the push and pull under way, if any, and use its result from now on."""
        if self._under_way is None:
            return
        outcome, self._under_way = self._under_way.result(), None
        self._took = outcome.took
        self._is_stopped |= outcome.is_stopped
        self._batches.extend(outcome.batches)
        if outcome.evaluation is not None:
            self._evaluation = outcome.evaluation
        if outcome.base != self._base:
            self._base = outcome.base
            self._host.load_parameters()

    def _claim_ahead(self) -> None:
        """Claim batches so that there is one to compute during the next push and pull. In lock-step, where arrivals are
        taken in the order of their batches, claim no batch for which others would have to wait."""
        is_alone = is_synchronous(self._job.strategy, self._base.version)
        wanted = 1 if is_alone else 2 + num_ahead(self._job)
        while len(self._batches) < wanted and (not self._batches or self._batches[-1] is not None):
            self._batches.append(self._thread.submit(claim, self._job, self._client).result())

    def _wait_for_returned(self) -> bool:
        """Wait, when nothing is under way, for a batch that another worker returns; return whether there is one."""
        self._settle()
        batch = self._thread.submit(self._push_pull.wait_for_returned, self._job.stop_requested).result()
        if batch is None:
            return False
        self._batches.appendleft(batch)
        self._start()
        return True

    def _start(self) -> None:
        self._base = self._thread.submit(self._push_pull.start, self._host.parameters).result()
        self._host.load_parameters()


class HostCopy:
    """The flat vectors in memory that the store's windows accept: the vectors themselves, or pinned copies of GPU vectors.

    Every copy is complete on return: the push and pull, perhaps in another thread on another stream, reads a complete
    gradient, and overwrites `parameters` only after the model has them.
    """

    def __init__(self, flat: FlatParameters, is_separate: bool = False, is_direct: bool = False) -> None:
        """Allocate pinned copies if needed. `is_separate`: `parameters` is never the vector that the model reads, so it may
        change while the model computes. `is_direct`: the windows accept vectors of the GPU."""
        self._flat = flat
        self._is_pinned = flat.parameters.device.type != "cpu" and not is_direct
        self._is_copy = self._is_pinned or is_separate
        self.parameters = flat.parameters
        if self._is_pinned:
            self.parameters = self._pinned(flat.parameters)
        elif is_separate:
            self.parameters = torch.empty_like(flat.parameters)
            # Another stream writes first to this memory, whose previous contents this stream may still use.
            cuda_ipc.finish(self.parameters.device)
        self._gradient = self._pinned(flat.gradient) if self._is_pinned else flat.gradient

    def gradient(self) -> torch.Tensor:
        """Return the gradient on the device of `parameters`: [size], float32; valid until the next step."""
        gradient = self._flat.collect_gradient()
        if self._is_pinned:
            arithmetic.copy(gradient, self._gradient)
            return self._gradient
        return gradient

    def load_parameters(self) -> None:
        """Copy the pulled `parameters` to the model."""
        if self._is_copy:
            arithmetic.copy(self.parameters, self._flat.parameters)

    @staticmethod
    def _pinned(vector: torch.Tensor) -> torch.Tensor:
        return torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
