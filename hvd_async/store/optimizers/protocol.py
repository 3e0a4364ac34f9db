"""The interface between a shard and its optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from hvd_async.config import OptimizerConfig
from hvd_async.vectors.arithmetic import Input, sum_inputs
from hvd_async.vectors.redo import RedoPart


@dataclass(frozen=True)
class StepOrder:
    """An optimizer step that makes `version` from the gradient: the sum of the added gradients / `divisor` * `clip`."""

    version: int
    rate_factor: float
    """Learning rate of the version, as a share of each group's highest rate."""
    divisor: float
    clip: float = 1.0


@dataclass(frozen=True)
class Operands:
    """The vectors of a step from `parameters` to `target`, [size] float32 each; `vectors` are the shard's, by name. Without a
    vector `average`, no average is updated. `redo`: the record of the step, by which others complete it if this process dies.
    `total`: where a provisional step leaves the sum of its inputs, of which it may be the first; None: nowhere."""

    parameters: torch.Tensor
    target: torch.Tensor
    vectors: Mapping[str, torch.Tensor]
    redo: RedoPart | None = None
    total: torch.Tensor | None = None


class Optimizer(Protocol):
    """Optimizer as a shard uses it. Its state is named vectors of the shard, [size] float32 each."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the vectors that a step reads and changes."""

    @property
    def can_redo(self) -> bool:
        """Whether it keeps the record of its steps."""

    @property
    def initial_state(self) -> float:
        """Value of all elements of the vectors before the first step."""

    def step(self, inputs: Sequence[Input], operands: Operands, order: StepOrder) -> list[float]:
        """Make the step `order` with the sum of `inputs`; return the sums of squares, as `arithmetic.sum_inputs` does."""

    def provisional_step(self, inputs: Sequence[Input], operands: Operands, order: StepOrder) -> None:
        """Write the result of the step `order` into the target, and the sum of `inputs` into `operands.total`, if there is one;
        change nothing else."""


def summed(inputs: Sequence[Input], operands: Operands) -> Sequence[Input]:
    """Sum `inputs` into `operands.total`, if there is one; return what has that sum. For optimizers without a pass for both."""
    if operands.total is None:
        return inputs
    sum_inputs(inputs, operands.total, 1.0)
    return [Input(operands.total)]


def average_weight(config: OptimizerConfig, version: int) -> float | None:
    """Return the weight of new parameters in the moving average. Early averages follow the parameters closely, as in
    tf.train.ExponentialMovingAverage with num_updates."""
    if not config.average_decay:
        return None
    return 1 - min(config.average_decay, (1 + version) / (10 + version))
