"""Models in evaluation, and the folders of exported ones: what tasks of every kind do alike."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hvd_async.config import RunConfig, dump_config
from hvd_async.system.files import new_folder
from hvd_async.system.tensor_files import save_tensors


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter of `model`."""
    return next(model.parameters()).device


@contextlib.contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Put each module of `model` back into its mode after the block: some may stay in evaluation mode while the model trains."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch `model` to eval mode, without gradients, inside the block."""
    with keeping_modes(model), torch.no_grad():
        model.eval()
        yield


def write_model(
    folder: Path, tensors: Mapping[str, Tensor], config: RunConfig, version: int, scores: Mapping[str, float]
) -> None:
    """Write `folder` anew, whole or not at all: `model.safetensors` with `tensors`, `config.yaml`, and
    `meta.json` with `version` and the validation `scores`. Raises `DataError` if the file system refuses."""
    meta = {"version": version, **{f"validation_{name}": score for name, score in scores.items()}}
    with new_folder(folder, replace=True) as temporary:
        save_tensors(temporary / "model.safetensors", tensors)
        (temporary / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
