"""The store of a simulation with gradients: the real store, fed with real gradients of the real task.

A gradient is computed when its push reaches the store: it depends on its batch and parameters, not on the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hvd_async.config import RunConfig
from hvd_async.runs.folder import RunFolder
from hvd_async.runs.recorder import RunRecorder
from hvd_async.runs.samples import keep_samples
from hvd_async.simulation.workers import Sender, VirtualWorker
from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.shards.shard import Shard
from hvd_async.store.staleness import needs_base_parameters
from hvd_async.store.wire.local_push import Pushes, add
from hvd_async.tasks.gradient import GradientOptions, batches_of, compute_gradient
from hvd_async.tasks.task import Task
from hvd_async.vectors import arithmetic
from hvd_async.vectors.flat import FlatParameters


@dataclass(frozen=True)
class Model:
    """The task, the model in training mode, its vectors and the run's seed, from which gradients are computed; the folder for
    samples."""

    task: Task
    module: torch.nn.Module
    flat: FlatParameters
    seed: int
    folder: RunFolder

    def weight(self, batch: int) -> float:
        """Return the weight of `batch`."""
        return self.task.weight(self.task.batch(batch, "cpu"))

    def gradient(self, batch: int, options: GradientOptions | None = None) -> tuple[float, float]:
        """Compute the gradient of `batch` into the model; return its weight and loss, as `compute_gradient` does."""
        return compute_gradient(self.task, self.module, self.flat, self.seed, batch, options or GradientOptions())

    def evaluate(self, version: int, parameters: torch.Tensor) -> Sequence[float]:
        """Return the statistics of the whole validation data with the `parameters` ([size], float32) of `version`, whose samples
        are kept."""
        with self.flat.with_parameters(parameters):
            statistics = self.task.evaluate(self.module)
            keep_samples(self.folder, self.task, self.module, version)
            return statistics


class Versions(Sequence[torch.Tensor]):
    """One vector for each version in use: the buffers of a shard that never overwrites a version.

    A version is held once, however many workers compute on it.
    """

    def __init__(self, initial: torch.Tensor) -> None:
        """Make version 0 a copy of `initial` ([size], float32)."""
        self._kept = {0: initial.clone()}
        self._free: list[torch.Tensor] = []

    def __len__(self) -> int:
        """Return a number that exceeds all versions."""
        return 2**62

    def __getitem__(self, version: int) -> torch.Tensor:  # type: ignore[override]  # no caller takes slices
        """Return the parameters of `version`, in new memory if there are none yet."""
        found = self._kept.get(version)
        if found is None:
            found = self._kept[version] = self._free.pop() if self._free else torch.empty_like(self._kept[min(self._kept)])
        return found

    def keep(self, used: set[int], newest: int) -> None:
        """Release all versions but those in `used`, `newest` and later ones."""
        for version in [v for v in self._kept if v not in used and v < newest]:
            self._free.append(self._kept.pop(version))


class Provisional(Sequence[torch.Tensor]):
    """Provisional parameters in use, numbered from 1: the buffers of a shard that makes each once and never overwrites
    any."""

    def __init__(self, size: int, device: torch.device) -> None:
        """Begin with no vectors. `size`: elements of each, on `device`."""
        self._size = size
        self._device = device
        self._kept: dict[int, torch.Tensor] = {}
        self._bases: dict[int, tuple[int, int]] = {0: (0, 0)}  # number -> version, arrivals
        self._number = 0

    def __len__(self) -> int:
        """Return a number that exceeds all numbers of vectors."""
        return 2**62

    def __getitem__(self, number: int) -> torch.Tensor:  # type: ignore[override]  # no caller takes slices
        """Return vector `number`, in new memory if there is none yet."""
        if number not in self._kept:
            self._kept[number] = torch.empty(self._size, device=self._device)
        return self._kept[number]

    def number_of(self, version: int, arrivals: int, make: Callable[[int], int]) -> int:
        """Return the number of the vector on top of `version` with its first `arrivals`; `make(number)` makes a missing
        one."""
        if self._bases.get(self._number) != (version, arrivals):
            self._number += 1
            self._bases[self._number] = (version, make(self._number))
        return self._number

    def arrivals(self, number: int) -> int:
        """Return the number of arrivals in vector `number`; 0 for number 0, which stands for none."""
        return self._bases[number][1]

    def keep(self, used: set[int], newest: int) -> None:
        """Release the vectors on top of versions that are neither in `used` nor `newest` or later."""
        for number in [n for n in self._kept if self._bases[n][0] not in used and self._bases[n][0] < newest]:
            del self._kept[number], self._bases[number]


class RealStore:
    """`SimulatedStore` over a real store, with a recorder."""

    def __init__(
        self, config: RunConfig, model: Model, num_workers: int, recorder: RunRecorder, last_version: int | None
    ) -> None:
        """Make the store. All arguments stay the caller's. Every event goes to `recorder`."""
        self.versions = Versions(model.flat.parameters)
        self._provisional = Provisional(model.flat.size, model.flat.parameters.device)
        keeps_bases = needs_base_parameters(config.strategy)
        shard = Shard(
            self.versions,
            config.optimizer,
            provisional=self._provisional,
            keeps_bases=keeps_bases,
            vector_map=model.flat.map,
        )
        self.store = ParameterStore(shard, model.flat.size, config.optimizer, config.strategy, num_workers)
        self._config = config
        self._model = model
        self._recorder = recorder
        self._last_version = last_version
        self._versions_in_use: Callable[[], set[int]] = set
        # A whole float32 gradient is used directly; any other is written and read as in a real push.
        is_whole = config.push.keep == 1.0 and config.push.dtype == "float32"
        self._pushes = None if is_whole else Pushes(model.flat.size, config.push)
        self._total = torch.empty_like(model.flat.parameters) if config.push.node_sum else None
        self._loaded = (0, 0)
        self._update: Update | None = None

    def watch(self, versions_in_use: Callable[[], set[int]]) -> None:
        """Call `versions_in_use` before parameters are released."""
        self._versions_in_use = versions_in_use

    @property
    def version(self) -> int:
        return self.store.version

    @property
    def num_pending(self) -> int:
        return len(self.store.pending)

    @property
    def watermark(self) -> int:
        return self.store.ledger.watermark

    def weight(self, batch: int) -> float:
        return self._model.weight(batch)

    def num_micro_batches(self, batch: int) -> int:
        return len(batches_of(self._model.task, batch, self._config.strategy.num_micro_batches, "cpu"))

    def base_parameters(self, version: int, provisional: int) -> torch.Tensor:
        """Return the parameters on which a step that pulled `version` is computed: [size], float32, read-only."""
        return self._provisional[provisional] if provisional else self.versions[version]

    def provisional(self, version: int) -> int:
        if version != self.store.version or not self.store.makes_provisional():
            return 0
        return self._provisional.number_of(version, len(self.store.pending), self.store.make_provisional)

    def admits(self, sender: Sender) -> bool:
        return self.store.admits([Arrival(0, sender.first_batch, sender.oldest_base, 0, 0.0)])

    def accept(self, sender: Sender) -> bool:
        arrivals, gradient = self._compute(sender)
        self._recorder.received(arrivals)
        self.store.accept(arrivals, gradient)
        if not self.store.is_complete():
            self.store.flush()  # the next gradient will be computed in the same memory
        return not self._report_refused()

    def refuse(self, sender: Sender) -> None:
        arrivals, _ = self._compute(sender)
        self._recorder.received(arrivals)
        self.store.refuse(arrivals, Refusal.AFTER_THE_END)
        self._report_refused()

    def is_complete(self) -> bool:
        return self.store.is_complete()

    def advance(self, oldest_under_way: int | None) -> bool:
        under_way = [] if oldest_under_way is None else [oldest_under_way]
        self._recorder.updating()
        self._update = self.store.advance(under_way)
        self._report_refused()
        if self._update is None:
            self.store.flush()
        return self._update is not None

    def leave(self, worker: int) -> None:
        self.store.leave(worker)

    def finish(self) -> bool:
        self._recorder.updating()
        self._update = self.store.finish()
        self._report_refused()
        return self._update is not None

    def published(self, oldest_under_way: int | None) -> None:
        """Publish the newest version and evaluate it if due. Evaluations take no virtual time."""
        assert self._update is not None
        version = self.store.version
        self.store.keep_base_versions(range(version if oldest_under_way is None else oldest_under_way, version))
        self._recorder.updated(self._update)
        used = self._versions_in_use()
        self.versions.keep(used, version)
        self._provisional.keep(used, version)
        if self._config.validation.is_due_during(version):
            self._recorder.evaluated(version, self._model.evaluate(version, self.store.evaluated_parameters))

    def is_over(self) -> bool:
        return (self._last_version is not None and self.version >= self._last_version) or self._recorder.is_finished()

    def _report_refused(self) -> bool:
        refused = self.store.take_refused()
        for arrival, refusal in refused:
            self._recorder.refused(arrival, refusal)
        return bool(refused)

    def _compute(self, sender: Sender) -> tuple[list[Arrival], Gradient]:
        """Return the arrivals that `sender` pushed, in the order of batches, and the sum of their gradients."""
        flat, workers = self._model.flat, sender.contributors
        results = []
        for number, worker in enumerate(workers):
            results.append(self._gradient_of(worker))
            if self._total is not None:
                add(flat.gradient, self._total, is_first=number == 0)
        vector = flat.gradient if self._total is None else self._total
        if self._pushes is None:
            gradient, num_bytes = Gradient.measure(vector), 4 * flat.size
        else:
            gradient, num_bytes = self._pushes.send(sender.number, vector)
        push = workers[0].out_batch
        arrivals = [
            _arrival(worker, weight, loss, 0 if number else num_bytes, push, self._provisional)
            for number, (worker, (weight, loss)) in enumerate(zip(workers, results, strict=True))
        ]
        return arrivals, gradient

    def _gradient_of(self, worker: VirtualWorker) -> tuple[float, float]:
        later = iter(worker.out_later)
        self._load((worker.out_base, worker.out_provisional))
        number = self._config.strategy.num_micro_batches
        options = GradientOptions(micro_batches=number, between=lambda _: self._load(next(later)))
        result = self._model.gradient(worker.out_batch, options)
        self._model.flat.collect_gradient()
        return result

    def _load(self, base: tuple[int, int]) -> None:
        """Give the model the parameters of `base`, a version and the number of provisional parameters."""
        if base != self._loaded:
            arithmetic.copy(self.base_parameters(*base), self._model.flat.parameters)
            self._loaded = base


def _arrival(
    worker: VirtualWorker, weight: float, loss: float, sent_bytes: int, push: int, provisional: Provisional
) -> Arrival:
    pushed, waited, pulled = worker.out_took
    return Arrival(
        worker=worker.number,
        batch=worker.out_batch,
        base_version=worker.out_base,
        weight=weight,
        loss=loss,
        step_seconds=worker.out_seconds,
        push_seconds=pushed,
        wait_seconds=waited,
        pull_seconds=pulled,
        provisional=provisional.arrivals(worker.out_provisional),
        sent_bytes=sent_bytes,
        push=push,
        later_bases=tuple((version, provisional.arrivals(number)) for version, number in worker.out_later),
    )
