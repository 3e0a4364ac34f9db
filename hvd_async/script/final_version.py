"""The last version of a script's run, as its folder has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hvd_async.config import OptimizerConfig
from hvd_async.runs.checkpoint import list_checkpoints, load_tensors, read_data, read_tensors
from hvd_async.runs.folder import RunFolder
from hvd_async.script.torch_state import state_for_torch
from hvd_async.vectors.flat import FlatParameters


@dataclass(frozen=True)
class FinalVersion:
    """The model and the optimizer of a run that has ended in `folder`.

    Attributes:
        model: the script's, whose trained parameters are in `flat`.
        optimizer: the update of the store, which the script described by `described`.
    """

    folder: RunFolder
    model: nn.Module
    flat: FlatParameters
    optimizer: OptimizerConfig
    described: torch.optim.Optimizer

    def load(self) -> None:
        """Give the model the parameters and buffers of the last version, on every rank."""
        self.model.load_state_dict(read_tensors(self.folder.models / "last" / "model.safetensors"))

    def optimizer_state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state, as torch's optimizer would have it."""
        saved = read_data(list_checkpoints(self.folder.checkpoints)[-1])
        num_steps = saved.data["store"]["version"] + self.optimizer.steps_before
        return state_for_torch(self.described, load_tensors(saved), self.flat, self.model, self.optimizer, num_steps)
