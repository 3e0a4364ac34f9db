"""Optimizers: the state vectors of each, and the numbers of a step, bias correction included.

To add an optimizer, write a class here and add a kind to `config/optimizer.py`. Arithmetic that `vectors.arithmetic` lacks
goes into `vectors/`, in torch operations first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from hvd_async.config import OptimizerConfig
from hvd_async.vectors import arithmetic


@dataclass(frozen=True)
class StepOrder:
    """An optimizer step that makes `version` from the gradient: the sum of the added gradients / `divisor` * `clip`."""

    version: int
    learning_rate: float
    divisor: float
    clip: float = 1.0


class Optimizer(Protocol):
    """Optimizer as a shard uses it. Its state is named vectors of the shard, [size] float32 each, initially zeros."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the vectors that a step reads and changes: moving averages, first of gradients, then of squared
        gradients."""

    def rule(self, order: StepOrder) -> arithmetic.Rule:
        """Return the numbers of the step `order`."""

    def provisional_rule(self, order: StepOrder) -> arithmetic.Rule:
        """Return the numbers of a provisional step: the result of `order`, without a change of state."""


class Sgd:
    """Stochastic gradient descent, optionally with momentum or Nesterov momentum, defined as in torch.optim.SGD."""

    def __init__(self, config: OptimizerConfig) -> None:
        """`config` has kind `sgd`."""
        self._config = config

    @property
    def state_names(self) -> tuple[str, ...]:
        """`momentum`, if configured."""
        return ("momentum",) if self._config.momentum else ()

    def rule(self, order: StepOrder) -> arithmetic.Rule:
        """Return the numbers of the step `order`."""
        config = self._config
        return arithmetic.Rule(
            kind="sgd",
            rate=order.learning_rate,
            decay=config.weight_decay,
            beta1=config.momentum,
            epsilon=config.epsilon,
            nesterov=config.nesterov,
            divisor=order.divisor,
            clip=order.clip,
            average_weight=_average_weight(config, order.version),
        )

    def provisional_rule(self, order: StepOrder) -> arithmetic.Rule:
        """Return the numbers of a provisional step: the result of `order`, without a change of state."""
        return dataclasses.replace(self.rule(order), is_provisional=True)


class Adam:
    """Adam (Kingma & Ba 2015), with weight decay added to the gradient, defined as in torch.optim.Adam."""

    state_names: tuple[str, ...] = ("first_moment", "second_moment")

    def __init__(self, config: OptimizerConfig) -> None:
        """`config` has kind `adam`, or the kind of a subclass."""
        self._config = config

    def rule(self, order: StepOrder) -> arithmetic.Rule:
        """Return the numbers of the step `order`, which is update number `order.version` for the bias correction."""
        config = self._config
        beta1, beta2 = config.betas
        return arithmetic.Rule(
            kind=config.kind,
            rate=order.learning_rate / (1 - beta1**order.version),
            decay=self._decay(order.learning_rate),
            beta1=beta1,
            beta2=beta2,
            inverse_root=1 / math.sqrt(1 - beta2**order.version),
            epsilon=config.epsilon,
            divisor=order.divisor,
            clip=order.clip,
            average_weight=_average_weight(config, order.version),
        )

    def provisional_rule(self, order: StepOrder) -> arithmetic.Rule:
        """Return the numbers of a provisional step: the result of `order`, without a change of state.

        The second moment is mostly that of the previous version (see `arithmetic.step`), so its bias correction is too.
        """
        inverse_root = 1 / math.sqrt(1 - self._config.betas[1] ** (order.version - 1))
        return dataclasses.replace(self.rule(order), is_provisional=True, inverse_root=inverse_root)

    def _decay(self, learning_rate: float) -> float:
        return self._config.weight_decay


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    def _decay(self, learning_rate: float) -> float:
        """Return the factor by which parameters are multiplied."""
        return 1 - learning_rate * self._config.weight_decay


_KINDS: Mapping[str, type[Sgd] | type[Adam]] = {"sgd": Sgd, "adam": Adam, "adamw": AdamW}


def make_optimizer(config: OptimizerConfig) -> Optimizer:
    """Return the optimizer that `config` names."""
    return _KINDS[config.kind](config)


def state_names(config: OptimizerConfig) -> list[str]:
    """Return the names of a shard's vectors beside the parameters: all that a checkpoint needs, and `pending_sum`."""
    average = ["average"] if config.average_decay else []
    return [*make_optimizer(config).state_names, *average, "pending_sum"]


def step_state(
    optimizer: Optimizer, source: torch.Tensor, target: torch.Tensor, vectors: Mapping[str, torch.Tensor]
) -> arithmetic.State:
    """Return the operands of a step from `source` to `target` ([size] float32 each); `vectors` are the shard's, by name.

    Without a vector `average`, no average is updated.
    """
    first, second = (*(vectors[name] for name in optimizer.state_names), None, None)[:2]
    return arithmetic.State(source, target, first, second, vectors.get("average"))


def _average_weight(config: OptimizerConfig, version: int) -> float | None:
    """Return the weight of new parameters in the moving average. Early averages follow the parameters closely, as in
    tf.train.ExponentialMovingAverage with num_updates."""
    if not config.average_decay:
        return None
    return 1 - min(config.average_decay, (1 + version) / (10 + version))
