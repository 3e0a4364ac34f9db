"""Tensors in safetensors files, without a copy of them in memory."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch

from hvd_async.system.files import give_usual_mode


def save_tensors(path: pathlib.Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the safetensors file `path`. The tensors may be on any device, be views and share memory; those on the CPU are
    written from where they are, and must not change meanwhile. Raises `OSError`."""
    try:
        safetensors.torch.save_file(_apart(tensors), path)
    except safetensors.SafetensorError as error:
        raise OSError(" ".join(str(error).partition(" at path ")[0].split())) from None
    give_usual_mode(path)  # the library makes the file private


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return contiguous tensors on the CPU, no two of which share elements, as the library requires. Copies only what must be."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    end = 0
    for name in sorted(whole, key=lambda name: whole[name].data_ptr()):
        tensor = whole[name]
        begin = tensor.data_ptr()
        if begin < end:
            whole[name] = tensor.clone()
        end = max(end, begin + tensor.nbytes)
    return whole
