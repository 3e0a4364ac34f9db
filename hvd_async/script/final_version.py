"""The last version of a script's run, as its folder has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hvd_async.config import OptimizerConfig
from hvd_async.errors import ConfigError
from hvd_async.runs.checkpoint import list_checkpoints, load_tensors, read_data, read_tensors
from hvd_async.runs.folder import RunFolder
from hvd_async.script.torch_state import state_for_torch
from hvd_async.tasks.user_values import describe_value
from hvd_async.vectors.flat import FlatParameters


@dataclass(frozen=True)
class FinalVersion:
    """The model and the optimizer of a run that has ended in `folder`.

    Attributes:
        model: the script's, whose trained parameters are in `flat`.
        optimizer: the update of the store, which the script described by `described`, one optimizer or two.
    """

    folder: RunFolder
    model: nn.Module
    flat: FlatParameters
    optimizer: OptimizerConfig
    described: Sequence[torch.optim.Optimizer]

    def load(self) -> None:
        """Give the model the parameters and buffers of the last version, on every rank."""
        self.model.load_state_dict(read_tensors(self.folder.models / "last" / "model.safetensors"))

    def optimizer_state_dict(self, described: torch.optim.Optimizer | None) -> dict[str, Any]:
        """Return the optimizer's state, as torch's optimizer would have it: `described`, one of `self.described`; None: the only
        one. Raises `ConfigError` for another."""
        if described is None and len(self.described) > 1:
            raise ConfigError(
                "optimizer_state_dict: got no optimizer, expected one of the two that were passed to prepare, whose state is"
                " wanted"
            )
        described = self.described[0] if described is None else described
        if not any(described is each for each in self.described):
            raise ConfigError(
                f"optimizer_state_dict: got {describe_value(described)}, expected an optimizer that was passed to prepare"
            )
        saved = read_data(list_checkpoints(self.folder.checkpoints)[-1])
        num_steps = saved.data["store"]["version"] + self.optimizer.steps_before
        return state_for_torch(described, load_tensors(saved), self.flat, self.model, self.optimizer, num_steps)
