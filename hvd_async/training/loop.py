"""The training loop, one for every strategy and every task."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hvd_async.emulation.idling import Emulation
from hvd_async.runs.folder import RunFolder
from hvd_async.runs.samples import keep_samples
from hvd_async.strategies.protocol import Step, Worker
from hvd_async.tasks.gradient import BatchProgress, GradientOptions, compute_gradient
from hvd_async.tasks.task import ReadsAhead, Task
from hvd_async.vectors.flat import FlatParameters


@dataclass(frozen=True)
class TrainingLoop:
    """The loop of one worker, equal for every strategy: claim a batch, compute its gradient, pass it to the strategy."""

    task: Task
    model: torch.nn.Module
    flat: FlatParameters
    emulation: Emulation
    seed: int
    folder: RunFolder
    num_micro_batches: int

    def __call__(self, worker: Worker, module: torch.nn.Module) -> None:
        """Train until `worker` has no more claims. `module` is the model, or the strategy's wrapper around it."""
        module.train()
        for claim in worker.claims():
            work = _Work(self, worker)
            if isinstance(self.task, ReadsAhead):
                self.task.expect(claim.upcoming)
            options = GradientOptions(claim.counts, self.num_micro_batches, work.pull)
            weight, loss = compute_gradient(self.task, module, self.flat, self.seed, claim.batch, options)
            work.finish(weight)
            worker.step(Step(claim.batch, weight, loss, work.seconds))
            self.evaluate_if_due(worker)

    def evaluate_if_due(self, worker: Worker, evaluated: Callable[[int], None] = lambda version: None) -> None:
        """Make the evaluation that `worker` is asked for, if any, and report it. `evaluated` is called before the report, on the
        rank of the first part."""
        request = worker.evaluation_due()
        if request is None:
            return
        with self.flat.with_parameters(request.parameters):
            statistics = self.task.evaluate(self.model, request.shard, request.num_shards)
            if request.shard == 0:
                keep_samples(self.folder, self.task, self.model, request.version)
        if request.shard == 0:
            evaluated(request.version)
        worker.report(request, statistics)


class _Work:
    """The work of one step, which lasts as long as the emulation says; pulls between its micro-batches do not count."""

    def __init__(self, loop: TrainingLoop, worker: Worker) -> None:
        """The step begins now."""
        self._loop = loop
        self._worker = worker
        self._device = loop.flat.parameters.device
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of work so far, idling of the emulation included."""
        return time.monotonic() - self._began

    def pull(self, progress: BatchProgress) -> None:
        """Bring the parameters up to date before the next micro-batch."""
        self._synchronize()  # so that what is pulled is as new as can be
        if self._loop.emulation.is_active:
            self.finish(progress.weight(), progress.done / progress.total, progress.total)
        worked = self.seconds
        self._worker.pull_newer()
        self._began = time.monotonic() - worked

    def finish(self, weight: float, share: float = 1.0, num_micro_batches: int = 1) -> None:
        """Idle for the rest of this `share` of the step, whose batch has `weight` and `num_micro_batches`, if they matter yet."""
        self._synchronize()  # so that the measured time is the work, not only its launch
        self._loop.emulation.delay(self.seconds, weight, share, num_micro_batches)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
