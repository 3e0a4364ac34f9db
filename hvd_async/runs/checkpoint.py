"""Checkpoints: folders that are written atomically and checked when they are read; the latest few are kept."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch

from hvd_async.errors import CheckpointError, DataError
from hvd_async.system import files
from hvd_async.system.json_text import parse_json
from hvd_async.system.tensor_files import save_tensors

# Format 2 added the clipping factor of the last update, 3 the times when pending arrivals were received, 4 checksums of the
# data and of the log; 5 renamed the data's sections; 6 has weights in place of tokens, and scores by
# name, 7 the number of lost workers, 8 the staleness of micro-batches.
_FORMAT = 8
_TENSORS, _DATA = "tensors.safetensors", "data.json"


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint: tensors by name, and plain data."""

    tensors: Mapping[str, torch.Tensor]
    data: Mapping[str, Any]


@dataclass(frozen=True)
class SavedData:
    """Plain data of the checkpoint in `folder`, and the checksum of its tensors."""

    folder: pathlib.Path
    data: Mapping[str, Any]
    checksum: int


def checkpoint_folder(root: pathlib.Path, version: int) -> pathlib.Path:
    """Return the folder of the checkpoint of `version` below `root`."""
    return root / f"v{version:08d}"


def save_checkpoint(root: pathlib.Path, version: int, checkpoint: Checkpoint, keep: int) -> SavedData:
    """Write the folder `root`/v<version> atomically; keep it and the `keep` - 1 checkpoints before it. Blocks on the disk.

    Checkpoints of later versions, left by a run that was since resumed from an earlier version, are removed too. Raises
    `DataError` if a file system operation fails.
    """
    folder = checkpoint_folder(root, version)
    with files.new_folder(folder, replace=True) as temporary:
        write_tensors(temporary / _TENSORS, checkpoint.tensors)
        checksum = _checksum(temporary / _TENSORS)
        _write_data(temporary, checkpoint.data, checksum)
    found = list_checkpoints(root)
    before = [other for other in found if other.name < folder.name]
    kept = {folder.name, *(other.name for other in before[max(0, len(before) - keep + 1) :])}
    for other in found:
        if other.name not in kept:
            _remove(other)
    return SavedData(folder, checkpoint.data, checksum)


def replace_data(saved: SavedData, data: Mapping[str, Any]) -> None:
    """Replace the plain data of a checkpoint atomically; its tensors stay. Blocks on the disk. Raises `DataError`."""
    _write_data(saved.folder, data, saved.checksum)


def list_checkpoints(root: pathlib.Path) -> list[pathlib.Path]:
    """Return the folders of the checkpoints in `root`, the latest version last, damaged ones included."""
    return sorted(path for path in root.glob("v*") if path.is_dir() and path.name[1:].isdigit())


def read_data(folder: pathlib.Path, hint: str = "") -> SavedData:
    """Read the plain data of the checkpoint in `folder`. Raises `CheckpointError` with `hint` if it is damaged."""
    try:
        head, _, body = (folder / _DATA).read_bytes().partition(b"\n")
        document = parse_json(head)
        if document["format"] != _FORMAT:
            raise CheckpointError(
                f"{folder}: got format {document['format']}, expected {_FORMAT}; use the hvd_async that wrote it"
            )
        if (found := zlib.crc32(body)) != document["data"]:
            raise CheckpointError(
                f"{folder / _DATA}: got checksum {found}, expected {document['data']}: it is damaged; {hint}"
            )
        return SavedData(folder, parse_json(body), int(document["tensors"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: damaged ({type(error).__name__}: {reason}); {hint}") from None


def check_tensors(saved: SavedData, hint: str = "") -> None:
    """Raise `CheckpointError` with `hint` if the file of tensors does not match `saved`. Reads the whole file."""
    path = saved.folder / _TENSORS
    try:
        found = _checksum(path)
    except OSError as error:
        raise CheckpointError(f"{path}: damaged ({error.strerror}); {hint}") from None
    if found != saved.checksum:
        raise CheckpointError(f"{path}: got checksum {found}, expected {saved.checksum}: it is damaged; {hint}")


def load_tensors(saved: SavedData, part: slice | None = None) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint, [size] each, or `part` of each, to the CPU; `check_tensors` verifies them."""
    return read_tensors(saved.folder / _TENSORS, part)


def way_out(folder: pathlib.Path, others: Sequence[pathlib.Path]) -> str:
    """Return a hint for the damaged checkpoint `folder`, `others` being the checkpoints before it."""
    return f"remove {folder} to resume from {others[-1]}" if others else "there is no checkpoint before it; start again"


def write_tensors(path: pathlib.Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replace the safetensors file `path` atomically. The tensors may be on any device and share memory; those on the CPU are
    written from where they are, and must not change meanwhile. Blocks on the disk.

    Raises `DataError` if a file system operation fails.
    """
    folder = files.temporary_beside(path)  # since the names of the library's own temporary files are unknown
    try:
        folder.mkdir()
        temporary = folder / path.name
        save_tensors(temporary, tensors)
        files.sync(temporary)
        os.rename(temporary, path)
        files.sync(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_tensors(path: pathlib.Path, part: slice | None = None) -> dict[str, torch.Tensor]:
    """Read a safetensors file, or `part` of each vector, to the CPU. Raises `CheckpointError` if it is missing or
    damaged."""
    try:
        if part is None:
            return safetensors.torch.load_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name)[part.start : part.stop] for name in file.keys()}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: not a complete safetensors file: {' '.join(str(error).split())}") from None


def _write_data(folder: pathlib.Path, data: Mapping[str, Any], tensors_checksum: int) -> None:
    """Write two lines of JSON: format and checksums, then the data."""
    body = json.dumps(data).encode()
    head = {"format": _FORMAT, "tensors": tensors_checksum, "data": zlib.crc32(body)}
    files.write_file(folder / _DATA, json.dumps(head).encode() + b"\n" + body)


def _remove(folder: pathlib.Path) -> None:
    try:
        files.remove(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be removed: {error.strerror or error}") from None


def _checksum(path: pathlib.Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value
