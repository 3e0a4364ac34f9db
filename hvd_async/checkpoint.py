"""Checkpoints: folders written whole or not at all, checked when they are read, the latest few kept."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch

from hvd_async.atomic import new_folder, write_file
from hvd_async.errors import CheckpointError

_FORMAT = 3  # since 2 with the clipping factor of the last update, since 3 with when pending arrivals were received
_TENSORS, _DATA = "tensors.safetensors", "data.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: tensors by name, and plain data."""

    tensors: Mapping[str, torch.Tensor]
    data: Mapping[str, Any]


def save_checkpoint(root: pathlib.Path, version: int, checkpoint: Checkpoint, keep: int) -> pathlib.Path:
    """Write the folder `root`/v<version>, whole or not at all, and remove all but the latest `keep`. Blocks on the disk."""
    folder = root / f"v{version:08d}"
    with new_folder(folder, replace=True) as temporary:
        write_tensors(temporary / _TENSORS, checkpoint.tensors)
        document = {"format": _FORMAT, "checksum": _checksum(temporary / _TENSORS), "data": checkpoint.data}
        write_file(temporary / _DATA, json.dumps(document).encode())
    _sync(root)
    for old in _checkpoints(root)[:-keep]:
        shutil.rmtree(old)
    return folder


def load_latest_checkpoint(root: pathlib.Path) -> Checkpoint | None:
    """The latest checkpoint in `root`, or None where there is none. Raises `CheckpointError` if it is damaged."""
    found = _checkpoints(root)
    return _load(found[-1], others=found[:-1]) if found else None


def write_tensors(path: pathlib.Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replace the safetensors file `path` as one step. The tensors may live on any device and share memory."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    safetensors.torch.save_file({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}, temporary)
    _sync(temporary)
    os.rename(temporary, path)


def read_tensors(path: pathlib.Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises `CheckpointError` if it is missing or damaged."""
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {' '.join(str(error).split())}") from None


def _load(folder: pathlib.Path, others: list[pathlib.Path]) -> Checkpoint:
    mend = f"remove {folder} to resume from {others[-1]}" if others else f"remove {folder} and start again"
    try:
        document = json.loads((folder / _DATA).read_text(encoding="utf-8"))
        expected, data = document["checksum"], document["data"]
        if document["format"] != _FORMAT:
            raise CheckpointError(
                f"{folder}: got format {document['format']}, expected {_FORMAT}; use the hvd_async it is from"
            )
        if (found := _checksum(folder / _TENSORS)) != expected:
            raise CheckpointError(f"{folder / _TENSORS}: got checksum {found}, expected {expected}: it is damaged; {mend}")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: damaged ({type(error).__name__}: {reason}); {mend}") from None
    return Checkpoint(read_tensors(folder / _TENSORS), data)


def _checkpoints(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in root.glob("v*") if p.is_dir() and p.name[1:].isdigit())


def _checksum(path: pathlib.Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
