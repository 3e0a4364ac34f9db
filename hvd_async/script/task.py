"""A script as a `Task`: what the recorder, the evaluation and the export need of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvd_async.config import RunConfig
from hvd_async.errors import ConfigError
from hvd_async.script.buffers import Buffers
from hvd_async.script.loader import BatchSource
from hvd_async.system.random_numbers import numbers_apart
from hvd_async.tasks.buffers import saved_tensors
from hvd_async.tasks.evaluating import device_of, evaluating, write_model
from hvd_async.tasks.metric import LOSS, Metric
from hvd_async.tasks.user_values import check_functions, check_metrics, check_unit, describe_value, number_of

Evaluate = Callable[[nn.Module], "Mapping[str, float] | float"]
"""Measures a model on validation data: returns its scores by the names of metrics, or its loss alone."""


@dataclass(frozen=True)
class Scoring:
    """Scores of a script: `evaluate` returns those of `metrics`; weights count `weight_unit`."""

    evaluate: Evaluate | None
    metrics: Sequence[Metric]
    weight_unit: str

    def check(self) -> None:
        """Raise `ConfigError` for what a user passed by mistake."""
        check_functions(evaluate=self.evaluate)
        check_unit(self.weight_unit)
        if check_metrics(self.metrics, "metrics") and self.evaluate is None:
            raise ConfigError("metrics: got some without evaluate, expected evaluate=, a function that measures them")

    @property
    def all_metrics(self) -> Sequence[Metric]:
        """The loss, and what else is measured; nothing without `evaluate`."""
        others = [metric for metric in self.metrics if metric.name != LOSS]
        loss = next((metric for metric in self.metrics if metric.name == LOSS), Metric(LOSS, "loss"))
        return () if self.evaluate is None else (loss, *others)

    @property
    def words(self) -> Sequence[str]:
        """Lines on what all ranks must have alike."""
        return [f"weight_unit {self.weight_unit}", *(f"metric {metric.name}" for metric in self.all_metrics)]

    def scores_of(self, found: Any) -> dict[str, float]:
        """Return what `evaluate` has `found`, by name. Raises `ConfigError` for what is no number, or has no metric."""
        expected = f"the loss, or a dict of {', '.join(repr(metric.name) for metric in self.all_metrics)}, each a number"
        if not isinstance(found, Mapping) and number_of(found) is None:
            raise ConfigError(f"evaluate: returned {describe_value(found)}, expected {expected}")
        scores = found if isinstance(found, Mapping) else {LOSS: found}
        numbers = {}
        for name, value in scores.items():
            if name not in {metric.name for metric in self.all_metrics}:
                raise ConfigError(
                    f"evaluate: got the score {describe_value(name)}, expected those of `metrics`; add a hvd_async.Metric for it,"
                    " or leave it out"
                )
            number = number_of(value)
            if number is None:
                raise ConfigError(f"evaluate: returned {describe_value(value)} as {name!r}, expected a number")
            numbers[name] = number
        if LOSS not in numbers:
            raise ConfigError(f"evaluate: returned no {LOSS!r}, expected {expected}")
        return numbers


class ScriptTask:
    """The model, the batches and the evaluation of a script. Implements `Task`."""

    def __init__(
        self,
        config: RunConfig,
        model: nn.Module,
        source: BatchSource,
        scoring: Scoring,
        buffers: Buffers,
    ) -> None:
        """All arguments stay the caller's."""
        self.metrics: Sequence[Metric] = scoring.all_metrics
        self.num_statistics = 2 * len(self.metrics)
        self.weight_unit = scoring.weight_unit
        self._config = config
        self._model = model
        self._source = source
        self._scoring = scoring
        self._buffers = buffers

    def recomputed_buffers(self, model: nn.Module) -> Collection[str]:
        """Return all buffers: `Buffers` sees to them."""
        return saved_tensors(model).keys()

    def build_model(self) -> nn.Module:
        """Return the script's model, the same at each call."""
        return self._model

    def fingerprint(self) -> str:
        """Return a hash of what is known of the data, of the model's shapes, and of the frozen parameters of rank 0, which no
        checkpoint has."""
        digest = hashlib.sha256(self._source.fingerprint().encode())
        for name, parameter in self._model.named_parameters():
            digest.update(f"{name} {list(parameter.shape)} {parameter.requires_grad}".encode())
            if not parameter.requires_grad:
                digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def describe_data(self) -> list[str]:
        """Return the number of batches, and what was ignored."""
        known, epochs = self._source.per_epoch, self._config.training.epochs
        # Whoever has kept a loop over epochs around that over batches is to see it now.
        many = "" if epochs in (None, 1) else f", {epochs:,} epochs, all in one loop over the batches"
        return [*([] if known is None else [f"{known:,} batches an epoch{many}"]), *self._source.notes]

    def num_batches(self) -> int | None:
        """Return the number of batches of the whole run; None if something else bounds it.

        Raises `ConfigError` if the configured bound cannot be known.
        """
        training, per_epoch = self._config.training, self._source.per_epoch
        if training.weight is not None:
            raise ConfigError("training.weight: got a bound by weight, expected epochs, updates or seconds in a script")
        if training.epochs is None or per_epoch is None:
            return None
        return training.epochs * per_epoch

    def batch(self, index: int, device: torch.device | str) -> Any:
        """Return batch `index` as the loader makes it."""
        return self._source.batch(index)

    @property
    def num_batches_ahead(self) -> int:
        """Batches that a rank should know ahead of time."""
        return self._source.num_batches_ahead

    def expect(self, indices: Sequence[int]) -> None:
        """Let the loader's processes begin to read the batches `indices`."""
        self._source.expect(indices)

    def close(self) -> None:
        """End the loader's processes."""
        self._source.close()

    def epoch_of(self, index: int) -> int:
        """Return the epoch, from 0, to which batch `index` belongs."""
        return 0 if self._source.per_epoch is None else index // self._source.per_epoch

    def weight(self, batch: Any) -> float:
        """Raises `ConfigError`: only the script knows its weights."""
        raise ConfigError("task.kind: got script, whose weights only the script knows")

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        """Raises `ConfigError`: only the script knows its loss."""
        raise ConfigError("task.kind: got script, whose loss only the script computes")

    def evaluate(self, model: nn.Module, shard: int = 0, num_shards: int = 1) -> Sequence[float]:
        """Return, for each metric, its score and whether it was measured; shard 0 measures the whole, the others nothing."""
        if shard > 0 or self._scoring.evaluate is None:
            return [0.0] * self.num_statistics
        with evaluating(model), numbers_apart(self._config.seed, device_of(model)):  # alike for all versions
            found = self._scoring.evaluate(model)
        scores = self._scoring.scores_of(found)
        if (wanted := self._config.validation.score) not in scores:
            raise ConfigError(
                f"evaluate: returned {', '.join(scores)} and no {wanted!r}, expected it, since validation.score is {wanted}"
            )
        result: list[float] = []
        for metric in self.metrics:
            result += [scores[metric.name], 1.0] if metric.name in scores else [0.0, 0.0]
        return result

    def scores(self, statistics: Sequence[float]) -> dict[str, float]:
        """Return the scores that were measured; the loss is NaN if it was not."""
        pairs = zip(statistics[::2], statistics[1::2], strict=True)
        found = {metric.name: score for metric, (score, there) in zip(self.metrics, pairs, strict=True) if there}
        return {LOSS: math.nan, **found}

    def export(self, folder: Path, named_tensors: Mapping[str, Tensor], version: int, scores: Mapping[str, float]) -> None:
        """Write `model.safetensors`, the state_dict of the model with its buffers, `config.yaml` and `meta.json`."""
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        tensors, buffers = {}, self._buffers.of(version)
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            own = buffers[name] if name in buffers else named_tensors.get(names.get(id(tensor), name), tensor)
            tensors[name] = own.detach().to("cpu", copy=True).contiguous()
        write_model(folder, tensors, self._config, version, scores)
