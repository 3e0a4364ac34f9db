"""One place for each optimizer: the vectors that it keeps, and the numbers of a step with its bias correction.

A new one is a class here and a kind in `config/optimizer.py`; arithmetic that `vectors.arithmetic` does not have yet goes into
`vectors/`, in torch operations first.
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
    """An optimizer step: the sum of what was added, divided by `divisor`, times `clip`, makes `version`."""

    version: int
    learning_rate: float
    divisor: float
    clip: float = 1.0


class Optimizer(Protocol):
    """What a shard asks of an optimizer. Its state lies in named vectors of the shard, [size] float32 each, zeros at first."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the vectors that a step reads and changes: first the moving average of gradients, then of their squares."""

    def rule(self, order: StepOrder) -> arithmetic.Rule:
        """Return the numbers of the step `order`."""

    def provisional_rule(self, order: StepOrder) -> arithmetic.Rule:
        """Return the numbers of a step that shows what `order` would make, and changes no state."""


class Sgd:
    """Stochastic gradient descent, with momentum and Nesterov's variant of it, as torch.optim.SGD has them."""

    def __init__(self, config: OptimizerConfig) -> None:
        """`config` has kind `sgd`."""
        self._config = config

    @property
    def state_names(self) -> tuple[str, ...]:
        """The momentum, where there is one."""
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
        """Return the numbers of a step that shows what `order` would make, and changes no state."""
        return dataclasses.replace(self.rule(order), is_provisional=True)


class Adam:
    """Adam (Kingma & Ba 2015), with weight decay added to the gradient, as torch.optim.Adam has it."""

    state_names: tuple[str, ...] = ("first_moment", "second_moment")

    def __init__(self, config: OptimizerConfig) -> None:
        """`config` has kind `adam`, or that of a subclass."""
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
        """Return the numbers of a step that shows what `order` would make, and changes no state.

        The second moment is mostly the one of the version before (see `arithmetic.step`), and is corrected as such.
        """
        inverse_root = 1 / math.sqrt(1 - self._config.betas[1] ** (order.version - 1))
        return dataclasses.replace(self.rule(order), is_provisional=True, inverse_root=inverse_root)

    def _decay(self, learning_rate: float) -> float:
        return self._config.weight_decay


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    def _decay(self, learning_rate: float) -> float:
        """Return what parameters are multiplied by."""
        return 1 - learning_rate * self._config.weight_decay


_KINDS: Mapping[str, type[Sgd] | type[Adam]] = {"sgd": Sgd, "adam": Adam, "adamw": AdamW}


def make_optimizer(config: OptimizerConfig) -> Optimizer:
    """Return the optimizer that `config` names."""
    return _KINDS[config.kind](config)


def state_names(config: OptimizerConfig) -> list[str]:
    """Names of the vectors beside the parameters that a shard keeps: all that a checkpoint needs, and `pending_sum`."""
    average = ["average"] if config.average_decay else []
    return [*make_optimizer(config).state_names, *average, "pending_sum"]


def step_state(
    optimizer: Optimizer, source: torch.Tensor, target: torch.Tensor, vectors: Mapping[str, torch.Tensor]
) -> arithmetic.State:
    """Return what a step from `source` to `target` ([size] float32 each) works on; `vectors` are the shard's, by name.

    Where `vectors` hold no `average`, no average is updated.
    """
    first, second = (*(vectors[name] for name in optimizer.state_names), None, None)[:2]
    return arithmetic.State(source, target, first, second, vectors.get("average"))


def _average_weight(config: OptimizerConfig, version: int) -> float | None:
    """Return the weight of new parameters in the moving average. Young averages follow closely, as in
    tf.train.ExponentialMovingAverage with num_updates."""
    if not config.average_decay:
        return None
    return 1 - min(config.average_decay, (1 + version) / (10 + version))
