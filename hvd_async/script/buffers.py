"""Buffers of a script's model that training changes, such as the running statistics of BatchNorm. The store has none of them."""

from __future__ import annotations

import base64

import safetensors.torch
import torch
from torch import Tensor, nn

from hvd_async.runs.checkpoint import read_tensors, write_tensors
from hvd_async.runs.folder import RunFolder
from hvd_async.transport.group import Group


def changing_buffers(model: nn.Module) -> list[str]:
    """Return the names of the modules of `model` that keep running statistics."""
    return [name for name, module in model.named_modules() if getattr(module, "track_running_stats", False)]


class Buffers:
    """Buffers that each worker has for itself. Those of an evaluated version are kept beside its snapshot."""

    def __init__(self, model: nn.Module, folder: RunFolder, *, are_averaged: bool) -> None:
        """`model` stays the caller's. `are_averaged`: whether the user chose that."""
        self._model = model
        self._folder = folder
        self._are_averaged = are_averaged
        self._change = are_averaged or bool(changing_buffers(model))

    def average(self, group: Group, *, is_worker: bool) -> None:
        """Give every rank the mean of the workers' buffers; of whole numbers, such as numbers of batches, the highest.
        Collective."""
        if not self._are_averaged or group.size == 1:
            return
        own = {name: buffer.cpu() for name, buffer in self._saved().items()}
        text = base64.b64encode(safetensors.torch.save(own)).decode() if is_worker else ""
        found = [safetensors.torch.load(base64.b64decode(each)) for each in group.allgather(text) if each]
        for name, buffer in own.items():
            all_ranks = torch.stack([each[name] for each in found])
            own[name] = all_ranks.mean(0) if buffer.is_floating_point() else all_ranks.amax(0)
        self._load(own)

    def keep(self, version: int) -> None:
        """Save the buffers with which this rank has evaluated `version`. Blocks on the disk."""
        if self._change:
            write_tensors(self._folder.buffers(version), self._saved())

    def of(self, version: int) -> dict[str, Tensor]:
        """Return the buffers with which `version` was evaluated during training; empty if it was not."""
        path = self._folder.buffers(version)
        return read_tensors(path) if self._change and path.exists() else {}

    def restore(self) -> bool:
        """Continue with the buffers that an earlier process exported or kept last. Return whether there were any."""
        kept = sorted(self._folder.snapshots.glob(self._folder.buffers(0).name.replace("0" * 8, "*")))
        for path in [self._folder.models / "last" / "model.safetensors", *reversed(kept)]:
            if path.exists():
                self._load(read_tensors(path))
                return True
        return not self._change

    def _saved(self) -> dict[str, Tensor]:
        names = self._model.state_dict().keys()
        return {name: buffer.detach() for name, buffer in self._model.named_buffers() if name in names}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, buffer in self._saved().items():
                if name in tensors:
                    buffer.copy_(tensors[name])
