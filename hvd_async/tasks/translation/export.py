"""The exported model: a folder with parameters, configuration, vocabulary and metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hvd_async.config import RunConfig, dump_config, load_config
from hvd_async.errors import ConfigError, DataError
from hvd_async.system.files import new_folder
from hvd_async.system.json_text import parse_json
from hvd_async.system.printable import printable
from hvd_async.system.tensor_files import save_tensors
from hvd_async.tasks.translation.architectures import build_model, shapes_of_model
from hvd_async.tasks.translation.model import TranslationModel
from hvd_async.tasks.translation.model_folder import CONFIG, META, PARAMETERS, check_folder
from hvd_async.tasks.translation.vocabularies import Vocabularies


def export_model(
    folder: Path,
    named_tensors: Mapping[str, Tensor],
    config: RunConfig,
    vocabularies: Vocabularies,
    *,
    version: int,
    extra: Mapping[str, Any],
) -> None:
    """Write `folder` anew, whole or not at all, replacing an existing one.

    `named_tensors` are those of the model's `named_parameters()`; they may be views of one vector, which must not change
    meanwhile. `extra` (which JSON can hold) goes to meta.json beside `version`. Raises `DataError` if the file system refuses.
    """
    with new_folder(folder, replace=True) as temporary:
        save_tensors(temporary / PARAMETERS, named_tensors)
        (temporary / CONFIG).write_text(dump_config(config), encoding="utf-8")
        (temporary / META).write_text(json.dumps({"version": version, **extra}, indent=1), encoding="utf-8")
        vocabularies.save(temporary)


@dataclass(frozen=True)
class ExportedModel:
    """A model in eval mode, with what a `Translator` needs."""

    model: TranslationModel
    vocabularies: Vocabularies
    config: RunConfig
    meta: dict[str, Any]
    """`version`, and the values given as `extra`."""
    name: str = "model"
    """What errors call the model: its folder."""

    def is_finite(self) -> bool:
        """Whether every parameter is finite; a model whose training diverged translates nothing."""
        return all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())


def load_model(folder: Path, device: torch.device | str = "cpu") -> ExportedModel:
    """Read a model that `export_model` wrote. Raises `DataError` if a file is missing, damaged or does not fit the
    others."""
    check_folder(folder)
    try:
        config = load_config(folder / CONFIG)
    except ConfigError as error:
        raise DataError(str(error)) from None
    vocabularies = Vocabularies.load_folder(folder)
    if vocabularies.are_shared != config.translation.vocabulary.shared:
        kinds = ["one vocabulary for both sides", "a vocabulary for each side"]
        got, expected = kinds if vocabularies.are_shared else kinds[::-1]
        raise DataError(f"{folder}: got {got}, expected {expected}, as its config.yaml says")
    source_size, target_size = vocabularies.sizes
    _check_shapes(folder / PARAMETERS, config, vocabularies)
    model = build_model(config.translation.model, target_size, source_size)
    _fill(model, folder / PARAMETERS)
    return ExportedModel(model.to(device).eval(), vocabularies, config, _read_meta(folder / META), str(folder))


def check_vocabularies(first: ExportedModel, other: ExportedModel) -> None:
    """Raise `DataError` unless both models have the same vocabulary."""
    if not first.vocabularies.is_same(other.vocabularies):
        raise DataError(
            f"{other.name}: got another vocabulary ({other.vocabularies}), expected that of {first.name}"
            f" ({first.vocabularies}); train with the same text, task.vocabulary and seed"
        )


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged: {error}") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("version"), int):
        raise DataError(f"{path}: damaged: expected an object with the number `version`")
    return meta


def _check_shapes(path: Path, config: RunConfig, vocabularies: Vocabularies) -> None:
    """Raise `DataError` unless the tensors of `path` are those of the model, before memory is allocated for either."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # it is not a mapping
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: damaged: {printable(str(error))}") from None
    source_size, target_size = vocabularies.sizes
    model = shapes_of_model(config.translation.model, target_size, source_size)
    expected = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    if odd := sorted(expected.keys() ^ found.keys()):
        side = "missing" if odd[0] in expected else "unknown to the model of config.yaml"
        raise DataError(f"{path}: tensor {printable(odd[0])} is {side}; got {len(found)} tensors, expected {len(expected)}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise DataError(f"{path}: {name}: got shape {found[name]}, expected {shape} by config.yaml and the vocabulary")


def _fill(model: TranslationModel, path: Path) -> None:
    """Copy the tensors of `path` into the parameters, which have equal names and shapes."""
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: damaged: {printable(str(error))}") from None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])
