"""The store of a synchronous strategy in a simulation with gradients: one replica of the store, fed with sums over all
workers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hvd_async.config import RunConfig
from hvd_async.runs.recorder import RunRecorder
from hvd_async.simulation.real_store import Model
from hvd_async.store.arrival import Arrival
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.wire.local_push import add
from hvd_async.strategies.synchronous import ONE, load_base, make_replica, next_group


class RealReplica:
    """`SimulatedReplica` over a real store, with a recorder: the part of `SynchronousWorker` on every rank."""

    def __init__(
        self,
        config: RunConfig,
        model: Model,
        num_workers: int,
        recorder: RunRecorder,
        last_version: int | None,
        num_batches: int | None,
    ) -> None:
        """Make the store. All arguments stay the caller's. Every event goes to `recorder`."""
        strategy = config.strategy.model_copy(update=ONE)
        self._replica = make_replica(model.flat, config.optimizer, strategy.delay)
        self.store = ParameterStore(self._replica, model.flat.size, config.optimizer, strategy, 1)
        self._config = config
        self._model = model
        self._num_workers = num_workers
        self._recorder = recorder
        self._last_version = last_version
        self._num_batches = num_batches
        self._total = torch.empty_like(model.flat.parameters)

    def weight(self, batch: int) -> float:
        return self._model.weight(batch)

    def group(self) -> tuple[int, ...]:
        """Return the next group of batches, which never reaches into the next epoch."""
        if (self._last_version is not None and self.store.version >= self._last_version) or self._recorder.is_finished():
            return ()
        return next_group(self.store.ledger.open_from(0), self._num_workers, self._num_batches, self._model.task.epoch_of)

    def take_in(self, group: Sequence[int], seconds: Sequence[float], waited: Sequence[float]) -> None:
        version, strategy = self.store.version, self._config.strategy
        arrivals = []
        for worker, batch in enumerate(group):
            load_base(self._replica, self._model.flat, strategy, worker)
            weight, loss = self._model.gradient(batch)
            gradient = self._model.flat.collect_gradient()
            add(gradient, self._total, is_first=worker == 0)
            arrivals.append(
                Arrival(
                    worker=worker,
                    batch=batch,
                    base_version=version - strategy.num_versions_behind(version, worker),
                    weight=weight,
                    loss=loss,
                    step_seconds=seconds[worker],
                    wait_seconds=waited[worker],
                    push=group[0],
                )
            )
        self._recorder.received(arrivals)
        self._recorder.updating()
        self.store.accept(arrivals, Gradient.measure(self._total))

    def update(self) -> None:
        update = self.store.advance()
        for arrival, refusal in self.store.take_refused():
            self._recorder.refused(arrival, refusal)
        if update is None:
            return
        self._recorder.updated(update)
        if self._config.validation.is_due_during(update.version):
            self._recorder.evaluated(update.version, self._model.evaluate(update.version, self.store.evaluated_parameters))
