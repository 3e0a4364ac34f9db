"""The workers of a recorded run, computed again by one process: gradients, and what was sent of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch

from hvd_async.config import RunConfig
from hvd_async.errors import DataError
from hvd_async.replay.past_parameters import Past
from hvd_async.replay.recording import Process, Push
from hvd_async.runs.provenance import device_of, this_software
from hvd_async.store.arrival import Arrival
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.wire.local_push import Pushes, add
from hvd_async.tasks.gradient import BatchProgress, GradientOptions, compute_gradient, flatten
from hvd_async.tasks.task import Task
from hvd_async.vectors.flat import FlatParameters


class Recomputation:
    """Computes recorded pushes again, each with the threads and on the kind of device of the rank that computed it."""

    def __init__(self, config: RunConfig, task: Task, past: Past, threads: int | None) -> None:
        """Prepare the task's model. `threads`: used instead of the recorded numbers. `past` stays the caller's."""
        self._task = task
        self._seed = config.seed
        self._optimizer = config.optimizer
        self._micro_batches = config.strategy.num_micro_batches
        self._past = past
        self._threads = threads
        self._models: dict[str, tuple[torch.nn.Module, FlatParameters]] = {}
        _, flat = self._model_on("cpu")
        is_async = config.strategy.is_async
        # A synchronous strategy sends nothing: its sums go to the store unchanged.
        self._pushes = Pushes(flat.size, config.push) if is_async else None
        self._sum = torch.zeros(flat.size)
        self._process = 0

    def send(
        self, process: Process, push: Push, check: Callable[[Arrival, Arrival], None]
    ) -> tuple[list[Arrival], Gradient]:
        """Compute `push`, one of `process`. Returns its arrivals, with the weights and losses computed now, and the
        gradient that reaches the store, which is valid until the next call. `check(recorded, recomputed)` is called with
        each arrival."""
        if process.number != self._process:
            self._process = process.number
            if self._pushes is not None:
                self._pushes.forget_errors()
        arrivals = []
        for number, recorded in enumerate(push.arrivals):
            arrival, gradient = self._compute(process, recorded)
            check(recorded, arrival)
            arrivals.append(arrival)
            if len(push.arrivals) > 1:
                add(gradient, self._sum, is_first=number == 0)
                gradient = self._sum
        if self._pushes is None:
            return arrivals, Gradient.measure(gradient)
        return arrivals, self._pushes.send(push.sender, gradient)[0]

    def where(self, process: Process, worker: int | None) -> dict[str, object]:
        """Return what this machine computes the gradients of `worker` with."""
        rank = process.rank_of(worker)
        return {
            **this_software(kind_of_device(device_of(rank["device"], rank["store_device"]))),
            "threads": self._threads_for(process, worker),
            "device": self._device_for(process, worker),
        }

    def _compute(self, process: Process, recorded: Arrival) -> tuple[Arrival, torch.Tensor]:
        module, flat = self._model_on(self._device_for(process, recorded.worker))
        threads = self._threads_for(process, recorded.worker)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        bases, parts = self._past.base_parameters(recorded), 1

        def load_next(progress: BatchProgress) -> None:
            nonlocal parts
            parts = progress.total
            if parts == len(bases):
                flat.parameters.copy_(bases[progress.done])

        flat.parameters.copy_(bases[0])
        options = GradientOptions(micro_batches=self._micro_batches, between=load_next)
        weight, loss = compute_gradient(self._task, module, flat, self._seed, recorded.batch, options)
        if parts != len(bases):
            raise DataError(
                f"batch {recorded.batch}: recorded with {len(bases)} micro-batches, but the task divides it into {parts}; the log"
                " is damaged, or the task has changed"
            )
        return dataclasses.replace(recorded, weight=weight, loss=loss), flat.collect_gradient().cpu()

    def _threads_for(self, process: Process, worker: int | None) -> int:
        return self._threads or int(process.rank_of(worker)["threads"])

    @staticmethod
    def _device_for(process: Process, worker: int | None) -> str:
        return kind_of_device(process.rank_of(worker)["device"])

    def _model_on(self, device: str) -> tuple[torch.nn.Module, FlatParameters]:
        if device not in self._models:
            module = self._task.build_model()
            self._models[device] = (module, flatten(module, self._optimizer, device))
            module.train()
        return self._models[device]


def kind_of_device(recorded: str) -> str:
    """Return the device on which to compute what was computed on `recorded`: one of the same kind if there is one, else
    the CPU."""
    return "cuda" if recorded.startswith("cuda") and torch.cuda.is_available() else "cpu"


def facts_of(process: Process, worker: int | None) -> Mapping[str, object]:
    """Return what `worker` computed with in the recorded run, like `Recomputation.where`."""
    rank = process.rank_of(worker)
    return {**process.software_of(worker), "threads": rank["threads"], "device": str(rank["device"]).partition(":")[0]}
