"""One model whose parameters are the means of those of several models, such as the last snapshots of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_async.config import ModelConfig
from hvd_async.errors import DataError
from hvd_async.tasks.translation.export import ExportedModel, check_vocabularies

_IGNORED = ("dropout", "attention_dropout", "max_positions")  # which change neither parameters nor what they mean


@dataclass(frozen=True)
class MeanModel:
    """The mean of several models."""

    first: ExportedModel
    """The first of the models, whose vocabulary and configuration are those of the mean."""
    named_tensors: dict[str, Tensor]
    """The mean of each parameter, in its dtype."""
    versions: list[int]
    """The versions of the models, in their order."""
    num_repeated: int
    """Models with the very parameters of one before them, which count once more."""


def average(models: Iterable[ExportedModel]) -> MeanModel:
    """Return the mean of `models`, each parameter summed in float64 and rounded once. Holds one model at a time beside the sum.

    Raises `DataError` for a model that is not finite, and for models with different vocabularies or architectures.
    """
    first: ExportedModel | None = None
    sums: dict[str, Tensor] = {}
    versions, seen = [], set()
    for model in models:
        if not model.is_finite():
            raise DataError(
                f"{model.name}: got parameters that are not finite numbers, expected a model that has not diverged"
            )
        if first is None:
            first = model
        check_vocabularies(first, model)
        _check_architectures(first, model)
        for name, parameter in model.model.named_parameters():
            found = parameter.detach().double()
            sums[name] = found if name not in sums else sums[name].add_(found)
        seen.add(_digest(model))
        versions.append(int(model.meta["version"]))
    if first is None:
        raise DataError("average: got no model, expected at least one")
    means = {name: sums[name].div_(len(versions)).to(parameter.dtype) for name, parameter in first.model.named_parameters()}
    return MeanModel(first, means, versions, num_repeated=len(versions) - len(seen))


def _digest(model: ExportedModel) -> bytes:
    """Return a hash of the values of all parameters."""
    digest = hashlib.blake2b()
    for parameter in model.model.parameters():
        digest.update(parameter.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _check_architectures(first: ExportedModel, other: ExportedModel) -> None:
    """Raise `DataError` unless the parameters of both models mean the same."""
    expected, got = first.config.translation.model, other.config.translation.model
    for key in ModelConfig.model_fields:
        if key not in _IGNORED and getattr(got, key) != getattr(expected, key):
            raise DataError(
                f"{other.name}: task.model.{key}: got {getattr(got, key)}, expected {getattr(expected, key)} as in {first.name}"
            )
