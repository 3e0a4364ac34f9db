"""Buffers of a script's model that training changes, such as the running statistics of BatchNorm. The store has none of them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from hvd_async.errors import ConfigError
from hvd_async.runs.checkpoint import read_tensors, write_tensors
from hvd_async.runs.folder import RunFolder
from hvd_async.script.endings import on_all_ranks
from hvd_async.system.printable import printable
from hvd_async.tasks.buffers import changed_tensors, load_saved_tensors, modules_with_statistics, saved_tensors
from hvd_async.transport.group import Group


class Buffers:
    """Buffers of the state_dict, and its extra state, that each worker has for itself. Those of an evaluated version are kept
    beside its snapshot, those of a run's end in its checkpoint.

    Some change in training. Whoever did not choose what happens to them is told: at the steps 1, 2, 4, 8, ... of each rank
    they are compared with what they were before its first batch, so that the others cost nothing.
    """

    def __init__(self, model: nn.Module, folder: RunFolder, *, are_averaged: bool, have_others: bool) -> None:
        """`model` stays the caller's. `are_averaged`: whether the user chose that; `have_others`: whether there are other ranks,
        with buffers of their own."""
        self._model = model
        self._folder = folder
        self._are_averaged = are_averaged
        self._have_others = have_others
        self._change = are_averaged or bool(modules_with_statistics(model))
        self._before: Mapping[str, Tensor] | None = None
        self._num_steps = 0

    def begin(self) -> None:
        """Note what the buffers are before the first batch of this rank."""
        if not self._change:
            self._before = {name: tensor.clone() for name, tensor in saved_tensors(self._model).items()} or None

    def stepped(self) -> None:
        """Count a step of this rank, and compare the buffers if it is one of those at which this is done.

        Raises `ConfigError` if buffers changed that other ranks have for themselves.
        """
        self._num_steps += 1
        if self._before is None or self._num_steps & (self._num_steps - 1):  # unless a power of two
            return
        changed = changed_tensors(self._before, saved_tensors(self._model))
        if not changed:
            return
        if self._have_others:
            raise ConfigError(
                f"model: got buffers that training changes ({printable(', '.join(changed[:3]))}), which each rank would have for"
                " itself; expected none, or prepare(buffers='average'), which averages them over the workers at the end; register"
                " what is only a cache with persistent=False"
            )
        self._change, self._before = True, None

    def average(self, group: Group, *, is_worker: bool) -> None:
        """Give every rank the mean over the workers that made a step, if the user chose that; of whole numbers and truth values,
        such as counts of batches, the highest. Collective.

        Both leave as it is what is alike on all ranks, also when it is done again after a resumption, which a sum of counts would
        not.
        """
        if not self._are_averaged or group.size == 1:
            return
        own = saved_tensors(self._model)
        text = as_text(own) if is_worker and self._num_steps else ""
        found = [from_text(each) for each in group.allgather(text) if each]
        if found:
            load_saved_tensors(self._model, {name: _combined(name, [each[name] for each in found]) for name in own})

    def keep(self, version: int) -> None:
        """Save the buffers with which this rank has evaluated `version`. Blocks on the disk."""
        if self._change:
            write_tensors(self._folder.buffers(version), saved_tensors(self._model))

    def keep_last(self, checkpoint: Path) -> None:
        """Save the buffers with which a run continues from `checkpoint`, the last of a run. Blocks on the disk."""
        if self._change:
            write_tensors(self._folder.buffers_of_checkpoint(checkpoint), saved_tensors(self._model))

    def of(self, version: int) -> dict[str, Tensor]:
        """Return the buffers with which `version` was evaluated during training; empty if it was not."""
        path = self._folder.buffers(version)
        return read_tensors(path) if self._change and path.exists() else {}

    def restore(self, checkpoint: Path) -> bool:
        """Continue with the buffers saved with `checkpoint`, or else those of the newest version before it that were kept.
        Return whether there were any, or none are needed."""
        version = int(checkpoint.name[1:])
        kept = [each for each in self._folder.versions_with_buffers() if each <= version]
        for path in [self._folder.buffers_of_checkpoint(checkpoint), *(self._folder.buffers(each) for each in kept[-1:])]:
            if path.exists():
                load_saved_tensors(self._model, read_tensors(path))
                return True
        return not self._change


def as_text(tensors: Mapping[str, Tensor]) -> str:
    """Return `tensors` as text, which ranks send each other."""
    content = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return base64.b64encode(safetensors.torch.save(content)).decode()


def from_text(text: str) -> dict[str, Tensor]:
    """Return the tensors, on the CPU, of which `as_text` made `text`."""
    return safetensors.torch.load(base64.b64decode(text))


def _combined(name: str, parts: Sequence[Tensor]) -> Tensor:
    """Return the mean of `parts`, or their maximum if they are whole numbers or truth values. Equal parts give their bits."""
    kind = parts[0].dtype
    if len({(part.dtype, part.shape) for part in parts}) > 1:
        with on_all_ranks():
            raise ConfigError(
                f"model: buffer {printable(name)}: got {', '.join(str(list(part.shape)) for part in parts)} on the workers,"
                " expected one shape and type on all, which buffers='average' can average"
            )
    if kind.is_complex:
        return torch.stack([part.to(torch.complex128) for part in parts]).mean(0).to(kind)
    if kind.is_floating_point:
        return torch.stack([part.double() for part in parts]).mean(0).to(kind)
    return torch.stack([part.long() for part in parts]).amax(0).to(kind)
