"""Training that begins with the parameters of a trained model: `task.init_from`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from hvd_async.config import RunConfig, TranslationConfig
from hvd_async.errors import ConfigError, DataError
from hvd_async.tasks.translation.export import load_model
from hvd_async.tasks.translation.model import TranslationModel
from hvd_async.tasks.translation.model_folder import PARAMETERS, naming
from hvd_async.tasks.translation.vocabularies import Vocabularies

# Keys of `task.model` on which the parameters of a kind depend, or what they compute.
_SHAPE = ("kind", "encoder_layers", "decoder_layers", "width", "tie_embeddings")
_OF_TRANSFORMERS = ("feed_forward", "heads", "norm")


def begin_with_parameters(model: TranslationModel, config: RunConfig, vocabularies: Vocabularies) -> None:
    """Copy the parameters of the model in `task.init_from`, if it is set, into `model`, which `config` describes.

    Raises `DataError` if that model is missing or damaged, and `ConfigError` if it has another shape or vocabulary.
    """
    if config.translation.init_from is None:
        return
    folder = Path(config.translation.init_from)
    with naming("init_from"):
        first = load_model(folder)
    here, there = config.translation.model, first.config.translation.model
    for key in (*_SHAPE, *(_OF_TRANSFORMERS if here.kind == "transformer" else ())):
        if getattr(here, key) != getattr(there, key):
            raise ConfigError(
                f"task.model.{key}: got {getattr(here, key)}, expected {getattr(there, key)}, as in {folder}, with which training"
                " is to begin"
            )
    if not first.vocabularies.is_same(vocabularies):
        given = config.translation.vocabulary
        key = "file" if given.file is not None or not given.has_files else "source_file, target_file"
        raise ConfigError(
            f"task.vocabulary.{key}: got another vocabulary than that of {folder}, with which training is to begin; leave"
            f" {'it' if key == 'file' else 'them'} out"
        )
    if not first.is_finite():
        raise DataError(
            f"{folder}: got parameters that are not finite, expected a model to begin with; its training diverged"
        )
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), first.model.parameters(), strict=True):
            mine.copy_(theirs)


def fingerprint_with_model(fingerprint: str, task: TranslationConfig) -> str:
    """Return `fingerprint`, of the data, changed by the parameters that training begins with. Raises `DataError` if they cannot
    be read."""
    if task.init_from is None:
        return fingerprint
    path = Path(task.init_from) / PARAMETERS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; expected the model of task.init_from") from None
    return hashlib.sha256(fingerprint.encode() + hashlib.sha256(content).digest()).hexdigest()[:16]
