"""A task made of a model, two map-style datasets and a loss, for users with data of their own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from hvd_async.config import RunConfig
from hvd_async.errors import ConfigError
from hvd_async.system.random_numbers import numbers_apart
from hvd_async.tasks.buffers import load_saved_tensors, saved_tensors
from hvd_async.tasks.dataset_arguments import check_arguments, check_is_sum, functions_by_metric
from hvd_async.tasks.evaluating import device_of, evaluating, keeping_modes, write_model
from hvd_async.tasks.fingerprints import fingerprint_of
from hvd_async.tasks.metric import LOSS, Metric
from hvd_async.tasks.reading import WHOLE, BatchReader, Reading, WorkerInit, map_tensors
from hvd_async.tasks.recalibration import calibrated, recalibrated_buffers
from hvd_async.tasks.task import Batch
from hvd_async.tasks.user_values import check_metrics, describe_value, number_of

_LOSS = Metric(LOSS, "loss")


class MapDataset(Protocol):
    """A map-style dataset, as `torch.utils.data.Dataset` describes it."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def __getitem__(self, index: int) -> Any:
        """Return example `index`, the same at each call."""


Measure = Callable[[Any, Batch], "Tensor | float"]
"""A sum over the examples of a batch, of the model's outputs and the batch."""


class DatasetTask:
    """A `Task` of map-style datasets.

    Each epoch is a permutation of the training examples that depends on the run's seed alone, cut into batches. Every
    example is read by the rank that computes its batch, whichever that is, so `train[i]` must be the same on all ranks and
    at each call; random augmentation may use the global generators of torch, NumPy and Python, which are seeded for each batch.

    With `num_workers`, `train`, `collate` and `worker_init` are sent to other processes.

    Args:
        config: the run's configuration, the first argument of the factory.
        model: makes a new model on the CPU.
        train: the training examples.
        validation: the examples on which the model is evaluated.
        batch_size: examples of a batch.
        loss: the loss of a batch from the model's outputs, summed over what `weight` counts.
        forward: the outputs of the model for a batch. Default: the model is called with the batch's first element.
        weight: what the loss of a batch is summed over. Default: the length of the batch's first tensor.
        weight_unit: what weights count, in the plural.
        measures: further metrics, each with the sum over a batch whose mean by weight is the score, in percent if the
            unit is `%`.
        derived: further metrics, each with a function of the scores by name.
        collate: makes a batch of a list of examples.
        drop_last: leave out the last batch of an epoch if it is smaller than the others.
        buffers: `refuse`: with strategy `async`, a model whose buffers change in training is refused. `recalibrate`: the running
            statistics of BatchNorm and InstanceNorm are computed from the parameters before each evaluation and export; other
            buffers that change are refused all the same.
        recalibration_batches: batches that `recalibrate` reads.
        fingerprint: identifies the training data. Default: a hash of some examples.
        num_workers: processes of each rank that read batches ahead of time; 0: the rank reads its own.
        worker_init: called in each of these processes, with its number.
    """

    weight_unit: str
    """The name of what weights count, for people."""
    metrics: Sequence[Metric]
    """The loss, the measures, and what is derived from them."""
    num_statistics: int
    """Length of the vector that `evaluate` returns."""

    def __init__(
        self,
        config: RunConfig,
        *,
        model: Callable[[], nn.Module],
        train: MapDataset,
        validation: MapDataset,
        batch_size: int,
        loss: Measure,
        forward: Callable[[nn.Module, Batch], Any] | None = None,
        weight: Callable[[Batch], float] | None = None,
        weight_unit: str = "examples",
        measures: Mapping[Metric, Measure] | None = None,
        derived: Mapping[Metric, Callable[[Mapping[str, float]], float]] | None = None,
        collate: Callable[[list[Any]], Batch] = default_collate,
        drop_last: bool = False,
        buffers: Literal["refuse", "recalibrate"] = "refuse",
        recalibration_batches: int = 32,
        num_workers: int = 0,
        worker_init: WorkerInit | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """Describe the task; nothing is read but a few examples, for the fingerprint. The arguments are those of the class.

        Raises `ConfigError` for values that do not fit together.
        """
        check_arguments(locals())
        self._per_epoch = len(train) // batch_size if drop_last else -(-len(train) // batch_size)
        if self._per_epoch < 1:
            raise ConfigError(f"batch_size: got {batch_size} with drop_last, expected at most the {len(train)} examples")
        self._config = config
        self._model = model
        self._train = train
        self._validation = validation
        self._batch_size = batch_size
        self._loss = loss
        self._forward = forward or _first_of_batch
        self._weight = weight
        self.weight_unit = weight_unit
        self._measures = functions_by_metric("measures", measures)
        self._derived = functions_by_metric("derived", derived)
        self._collate = collate
        self._reader = BatchReader(Reading(train, collate, is_batched=True, seed=config.seed), num_workers, worker_init)
        self._recalibrates = buffers == "recalibrate"
        self._num_recalibration = min(recalibration_batches, self._per_epoch)
        self._fingerprint = fingerprint
        self._is_checked = False  # whether the loss is a sum
        self._order: tuple[int, Any] | None = None
        self._evaluated: Mapping[str, Tensor] = {}  # the buffers of the last evaluation, unless they are recalibrated
        self.metrics = (_LOSS, *self._measures, *self._derived)
        check_metrics(self.metrics, "measures, derived")
        self.num_statistics = 2 + len(self._measures)

    def recomputed_buffers(self, model: nn.Module) -> Collection[str]:
        """Return the names of the running statistics that are computed from the parameters, so that nothing depends on them."""
        return recalibrated_buffers(model) if self._recalibrates else ()

    def build_model(self) -> nn.Module:
        """Return a new model on the CPU, drawn from the run's seed."""
        with numbers_apart(self._config.seed):
            return self._model()

    def fingerprint(self) -> str:
        """Return the hash of the training data, of their number, and of the size of batches."""
        own = self._fingerprint if self._fingerprint is not None else fingerprint_of(self._train)
        return hashlib.sha256(json.dumps([own, len(self._train), self._batch_size, self._per_epoch]).encode()).hexdigest()

    def describe_data(self) -> list[str]:
        """Return a line on the sizes of the data."""
        left_out = len(self._train) - self._per_epoch * self._batch_size
        note = f"; {left_out:,} of each epoch left out by drop_last" if left_out > 0 else ""
        lines = [
            f"{len(self._train):,} training and {len(self._validation):,} validation examples,"
            f" {self._per_epoch:,} batches an epoch{note}"
        ]
        obstacle = self._reader.obstacle
        return lines + ([f"num_workers is ignored, and each rank reads its own batches: {obstacle}"] if obstacle else [])

    def num_batches(self) -> int | None:
        """Return the number of batches of the whole run; None if updates or seconds bound the run.

        Raises `ConfigError` if a total weight bounds the run, but only the batches themselves tell their weights.
        """
        training = self._config.training
        if training.epochs is not None:
            return training.epochs * self._per_epoch
        if training.weight is None:
            return None
        if self._weight is not None:
            raise ConfigError(
                "training.weight: got a bound by weight, expected epochs, updates or seconds: this task knows the weight of a"
                " batch only when it has read it"
            )
        of_epoch = min(len(self._train), self._per_epoch * self._batch_size)
        epochs, rest = divmod(training.weight, of_epoch)
        return epochs * self._per_epoch + -(-rest // self._batch_size)

    def batch(self, index: int, device: torch.device | str) -> Batch:
        """Return batch `index` (from 0, across epochs), on `device`."""
        [batch] = self._read(index, 1, device)
        return batch

    def micro_batches(self, index: int, number: int, device: torch.device | str) -> list[Batch]:
        """Return batch `index`, on `device`, as `number` batches, or as fewer if these had less than two examples, over which
        BatchNorm could not normalize. Each is read by itself."""
        return self._read(index, number, device)

    @property
    def num_batches_ahead(self) -> int:
        """Batches that a rank should know ahead of time, for the processes that read them."""
        return self._reader.num_ahead

    def expect(self, indices: Sequence[int]) -> None:
        """Let the processes begin to read the batches `indices`, if there are any processes."""
        number = self._config.strategy.num_micro_batches
        self._reader.expect(part for index in indices for part in self._parts(index, number))

    def close(self) -> None:
        """End the processes."""
        self._reader.close()

    def epoch_of(self, index: int) -> int:
        """Return the epoch, from 0, to which batch `index` belongs."""
        return index // self._per_epoch

    def weight(self, batch: Batch) -> float:
        """Return what the loss of `batch` is summed over."""
        return self._weight_of(batch)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
        """Return the summed loss, a scalar, and the weight of the batch."""
        is_mixed = self._config.training.precision == "bfloat16"
        with torch.autocast(device_of(model).type, dtype=torch.bfloat16, enabled=is_mixed):
            loss = self._loss(self._forward(model, batch), batch)
        if not isinstance(loss, Tensor) or loss.dim():
            raise ConfigError(
                f"loss: got {describe_value(loss)}, expected a tensor with a single number, the sum over the batch"
            )
        if not loss.is_floating_point() or (torch.is_grad_enabled() and not loss.requires_grad):
            has = "" if loss.requires_grad else " without a gradient"
            raise ConfigError(
                f"loss: got a tensor of {loss.dtype}{has}, expected one computed from the outputs of the model"
            )
        if not self._is_checked and len(self._validation) > 1:
            self._is_checked = True
            with keeping_modes(model), torch.no_grad(), numbers_apart(0, device_of(model)):
                check_is_sum(lambda examples: self._measured(model.eval(), examples))
        return loss, self._weight_of(batch)

    def evaluate(self, model: nn.Module, shard: int = 0, num_shards: int = 1) -> Sequence[float]:
        """Return sums over each `num_shards`-th validation batch from `shard` on: weight, loss, and each measure. In
        float32 whatever the precision of training."""
        device, sums = device_of(model), np.zeros(self.num_statistics)
        with self._calibrated(model), evaluating(model):
            starts = range(0, len(self._validation), self._batch_size)[shard::num_shards]
            for start in starts:
                batch = self._validation_batch(range(start, min(start + self._batch_size, len(self._validation))), device)
                outputs = self._forward(model, batch)
                sums += [self._weight_of(batch), _number("loss", self._loss(outputs, batch))] + [
                    _number(f"measures: {metric.name}", measure(outputs, batch))
                    for metric, measure in self._measures.items()
                ]
            if not self._recalibrates:
                self._evaluated = {name: tensor.clone() for name, tensor in saved_tensors(model).items()}
        result: list[float] = sums.tolist()
        return result

    def scores(self, statistics: Sequence[float]) -> dict[str, float]:
        """Return the loss, the measures, and what is derived from them."""
        weight = statistics[0]
        found = {LOSS: statistics[1] / weight if weight else math.nan}
        for metric, total in zip(self._measures, statistics[2:], strict=True):
            found[metric.name] = (100.0 if metric.unit == "%" else 1.0) * total / weight if weight else math.nan
        for metric, derive in self._derived.items():
            try:
                found[metric.name] = _number(f"derived: {metric.name}", derive(found))
            except (OverflowError, ValueError):  # such as the exponential of a loss that diverged
                found[metric.name] = math.inf
        return found

    def export(self, folder: Path, named_tensors: Mapping[str, Tensor], version: int, scores: Mapping[str, float]) -> None:
        """Write `model.safetensors`, the state_dict of the model with its buffers, `config.yaml` and `meta.json`."""
        model = self.build_model()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(named_tensors[name])
        load_saved_tensors(model, self._evaluated)
        with self._calibrated(model):
            tensors = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
        write_model(folder, tensors, self._config, version, scores)

    def _validation_batch(self, examples: Sequence[int], device: torch.device) -> Batch:
        read = self._collate([self._validation[example] for example in examples])
        return map_tensors(read, lambda tensor: tensor.to(device))

    def _measured(self, model: nn.Module, examples: Sequence[int]) -> tuple[float, float]:
        """Return the loss and the weight of a batch of some examples for validation."""
        batch = self._validation_batch(examples, device_of(model))
        return _number("loss", self._loss(self._forward(model, batch), batch)), self._weight_of(batch)

    def _read(self, index: int, number: int, device: torch.device | str) -> list[Batch]:
        read = (self._reader.read(*part) for part in self._parts(index, number))
        return [map_tensors(each, lambda tensor: tensor.to(device)) for each in read]

    def _parts(self, index: int, number: int) -> list[tuple[int, list[int], int]]:
        """Return the arguments with which the micro-batches of batch `index` are read, or the batch itself if `number` is 1."""
        chosen = self._chosen(index)
        if number == 1:
            return [(index, chosen, WHOLE)]
        number = max(1, min(number, len(chosen) // 2))
        return [(index, chosen[start::number], start) for start in range(number)]

    def _chosen(self, index: int) -> list[int]:
        """Return the examples of batch `index`."""
        epoch, number = divmod(index, self._per_epoch)
        chosen: list[int] = self._permutation(epoch)[number * self._batch_size : (number + 1) * self._batch_size].tolist()
        return chosen

    def _permutation(self, epoch: int) -> Any:
        order = self._order  # which another thread, that of an export, may replace meanwhile
        if order is None or order[0] != epoch:
            seeds = [self._config.seed & 0xFFFFFFFFFFFFFFFF, epoch]
            self._order = order = epoch, np.random.default_rng(seeds).permutation(len(self._train))
        return order[1]

    def _weight_of(self, batch: Batch) -> float:
        return _length_of(batch) if self._weight is None else _number("weight", self._weight(batch))

    def _calibrated(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Return a context manager that gives the model buffers that fit its parameters, in its block."""
        if not self._recalibrates:
            return contextlib.nullcontext()
        device = device_of(model)

        def forward(index: int) -> None:
            with numbers_apart(index, device):  # for each batch, as the exports of the background hold up training meanwhile
                self._forward(model, self.batch(index, device))

        return calibrated(model, self._num_recalibration, forward)


def _first_of_batch(model: nn.Module, batch: Batch) -> Any:
    return model(batch[0])


def _length_of(batch: Batch) -> float:
    """Return the length of the first tensor in `batch`."""
    if isinstance(batch, Tensor):
        return float(len(batch))
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    for part in parts:
        with contextlib.suppress(ConfigError):
            return _length_of(part)
    raise ConfigError(f"weight: got a batch of type {type(batch).__name__} without a tensor, expected `weight=` to count it")


def _number(what: str, value: Any) -> float:
    number = number_of(value)
    if number is None:
        raise ConfigError(f"{what}: got {describe_value(value)}, expected a number, the sum over the batch")
    return number
