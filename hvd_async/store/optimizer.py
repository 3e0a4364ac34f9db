"""Optimizers: the state vectors of each, and the numbers of a step, bias correction included.

To add an optimizer, write a class here and add a kind to `config/optimizer.py`. Arithmetic that `vectors.arithmetic` lacks
goes into `vectors/`, in torch operations first.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from hvd_async.config import OptimizerConfig
from hvd_async.vectors.rule import Rule, State


@dataclass(frozen=True)
class StepOrder:
    """An optimizer step that makes `version` from the gradient: the sum of the added gradients / `divisor` * `clip`."""

    version: int
    rate_factor: float
    """Learning rate of the version, as a share of each group's highest rate."""
    divisor: float
    clip: float = 1.0


class Optimizer(Protocol):
    """Optimizer as a shard uses it. Its state is named vectors of the shard, [size] float32 each."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the vectors that a step reads and changes: `first` and `second` of `State`, as far as there are any."""

    @property
    def initial_state(self) -> float:
        """Value of all elements of the vectors before the first step."""

    def rule(self, order: StepOrder) -> Rule:
        """Return the numbers of the step `order`."""

    def provisional_rule(self, order: StepOrder) -> Rule:
        """Return the numbers of a provisional step: the result of `order`, without a change of state."""


class Sgd:
    """Stochastic gradient descent, optionally with momentum or Nesterov momentum, defined as in torch.optim.SGD."""

    initial_state = 0.0

    def __init__(self, config: OptimizerConfig) -> None:
        """`config` has kind `sgd`."""
        self._config = config

    @property
    def state_names(self) -> tuple[str, ...]:
        """`momentum`, if configured."""
        return ("momentum",) if self._config.momentum else ()

    def rule(self, order: StepOrder) -> Rule:
        """Return the numbers of the step `order`."""
        config = self._config
        return Rule(
            kind="sgd",
            rate=config.learning_rate * order.rate_factor,
            decay=config.weight_decay,
            beta1=config.momentum,
            epsilon=config.epsilon,
            nesterov=config.nesterov,
            divisor=order.divisor,
            clip=order.clip,
            average_weight=_average_weight(config, order.version),
        )

    def provisional_rule(self, order: StepOrder) -> Rule:
        """Return the numbers of a provisional step: the result of `order`, without a change of state."""
        return dataclasses.replace(self.rule(order), is_provisional=True)


class Adam:
    """Adam (Kingma & Ba 2015), with weight decay added to the gradient, defined as in torch.optim.Adam."""

    state_names: tuple[str, ...] = ("first_moment", "second_moment")
    initial_state = 0.0

    def __init__(self, config: OptimizerConfig) -> None:
        """`config` has kind `adam`, or the kind of a subclass."""
        self._config = config

    def rule(self, order: StepOrder) -> Rule:
        """Return the numbers of the step `order`, which is update number `order.version` for the bias correction."""
        config = self._config
        beta1, beta2 = config.betas
        rate = config.learning_rate * order.rate_factor
        return Rule(
            kind=config.kind,
            rate=rate / (1 - beta1**order.version),
            decay=self._decay(rate),
            beta1=beta1,
            beta2=beta2,
            inverse_root=1 / math.sqrt(1 - beta2**order.version),
            epsilon=config.epsilon,
            divisor=order.divisor,
            clip=order.clip,
            average_weight=_average_weight(config, order.version),
        )

    def provisional_rule(self, order: StepOrder) -> Rule:
        """Return the numbers of a provisional step: the result of `order`, without a change of state.

        The second moment is mostly that of the previous version (see `Rule`), so its bias correction is too.
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


class NAdam(Adam):
    """Adam with Nesterov momentum (Dozat 2016), defined as in torch.optim.NAdam: the momentum of version t is
    mu_t = beta1 * (1 - 0.96^(t * momentum_decay) / 2)."""

    def __init__(self, config: OptimizerConfig) -> None:
        """`config` has kind `nadam`."""
        super().__init__(config)
        self._product = (0, 1.0)

    def rule(self, order: StepOrder) -> Rule:
        """Return the numbers of the step `order`, which is update number `order.version` for the momenta."""
        rate = self._config.learning_rate * order.rate_factor
        momentum, following = self._momentum(order.version), self._momentum(order.version + 1)
        product = self._product_up_to(order.version)
        return dataclasses.replace(
            super().rule(order),
            kind="nadamw" if self._config.decoupled_weight_decay else "nadam",
            rate=rate * following / (1 - product * following),
            gradient_rate=rate * (1 - momentum) / (1 - product),
        )

    def _decay(self, learning_rate: float) -> float:
        decay = self._config.weight_decay
        return 1 - learning_rate * decay if self._config.decoupled_weight_decay else decay

    def _momentum(self, version: int) -> float:
        config = self._config
        return config.betas[0] * (1 - 0.5 * math.pow(0.96, version * config.momentum_decay))

    def _product_up_to(self, version: int) -> float:
        """Return the product of the momenta of versions 1 to `version`, to the same bits in a run that was resumed.

        The product of the last call is extended. It is left alone once the difference of 1 and the product is 1.
        """
        last, product = self._product
        if version < last:
            last, product = 0, 1.0
        while last < version and product > 1e-17:
            last += 1
            product *= self._momentum(last)
        self._product = (version, product)
        return product


class Lion:
    """Lion (Chen et al. 2023): a step by the sign of a moving average, with decoupled weight decay."""

    state_names: tuple[str, ...] = ("momentum",)
    initial_state = 0.0

    def __init__(self, config: OptimizerConfig) -> None:
        """`config` has kind `lion`."""
        self._config = config

    def rule(self, order: StepOrder) -> Rule:
        """Return the numbers of the step `order`."""
        config = self._config
        rate = config.learning_rate * order.rate_factor
        return Rule(
            kind="lion",
            rate=rate,
            decay=1 - rate * config.weight_decay,
            beta1=config.betas[0],
            beta2=config.betas[1],
            divisor=order.divisor,
            clip=order.clip,
            average_weight=_average_weight(config, order.version),
        )

    def provisional_rule(self, order: StepOrder) -> Rule:
        """Return the numbers of a provisional step: the result of `order`, without a change of state."""
        return dataclasses.replace(self.rule(order), is_provisional=True)


class Adagrad:
    """Adagrad (Duchi et al. 2011), defined as in torch.optim.Adagrad: `rate_decay` is its `lr_decay`."""

    state_names: tuple[str, ...] = ("squared_sum",)

    def __init__(self, config: OptimizerConfig) -> None:
        """`config` has kind `adagrad`."""
        self._config = config

    @property
    def initial_state(self) -> float:
        """Value with which the sums of squares begin."""
        return self._config.initial_accumulator

    def rule(self, order: StepOrder) -> Rule:
        """Return the numbers of the step `order`, which is update number `order.version` for the decay of the rate."""
        config = self._config
        return Rule(
            kind="adagrad",
            rate=config.learning_rate * order.rate_factor / (1 + (order.version - 1) * config.rate_decay),
            decay=config.weight_decay,
            epsilon=config.epsilon,
            divisor=order.divisor,
            clip=order.clip,
            average_weight=_average_weight(config, order.version),
        )

    def provisional_rule(self, order: StepOrder) -> Rule:
        """Return the numbers of a provisional step: the result of `order`, without a change of state.

        The squared gradient of a part of the update is added, unlike in Adam: see `Rule`.
        """
        return dataclasses.replace(self.rule(order), is_provisional=True)


_KINDS: Mapping[str, Callable[[OptimizerConfig], Optimizer]] = {
    "sgd": Sgd,
    "adam": Adam,
    "adamw": AdamW,
    "nadam": NAdam,
    "lion": Lion,
    "adagrad": Adagrad,
}


def make_optimizer(config: OptimizerConfig) -> Optimizer:
    """Return the optimizer that `config` names."""
    return _KINDS[config.kind](config)


def make_optimizers(config: OptimizerConfig, ranges: Sequence[slice]) -> list[tuple[slice, Optimizer]]:
    """Return each range of elements that is not empty with the optimizer of its group; `ranges[k]` is that of group k."""
    settings = config.of_groups()
    return [
        (range_, make_optimizer(each)) for range_, each in zip(ranges, settings, strict=True) if range_.start < range_.stop
    ]


def ranges_within(ranges: Sequence[slice], part: slice) -> list[slice]:
    """Return `ranges`, of the whole vector, as far as they lie in `part`, counted from its start."""
    ends = [max(0, min(each.stop, part.stop) - part.start) for each in ranges]
    return [slice(start, end) for start, end in itertools.pairwise([0, *ends])]


def state_names(config: OptimizerConfig) -> list[str]:
    """Return the names of a shard's vectors beside the parameters: all that a checkpoint needs, and `pending_sum`."""
    average = ["average"] if config.average_decay else []
    return [*make_optimizer(config).state_names, *average, "pending_sum"]


def step_state(
    optimizer: Optimizer, source: torch.Tensor, target: torch.Tensor, vectors: Mapping[str, torch.Tensor]
) -> State:
    """Return the operands of a step from `source` to `target` ([size] float32 each); `vectors` are the shard's, by name.

    Without a vector `average`, no average is updated.
    """
    first, second = (*(vectors[name] for name in optimizer.state_names), None, None)[:2]
    return State(source, target, first, second, vectors.get("average"))


def _average_weight(config: OptimizerConfig, version: int) -> float | None:
    """Return the weight of new parameters in the moving average. Early averages follow the parameters closely, as in
    tf.train.ExponentialMovingAverage with num_updates."""
    if not config.average_decay:
        return None
    return 1 - min(config.average_decay, (1 + version) / (10 + version))
