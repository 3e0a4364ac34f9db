"""The optimizers of our own arithmetic: the state vectors of each, and the numbers of a step, bias correction included.

To add one, write a class here, and add a kind to `factory` and to `config/optimizer.py`. Arithmetic that `vectors.arithmetic`
lacks goes into `vectors/`, in torch operations first.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence

from hvd_async.config import OptimizerConfig
from hvd_async.store.optimizers.protocol import Operands, StepOrder, average_weight
from hvd_async.vectors import arithmetic
from hvd_async.vectors.rule import Rule, State


class _Kernel(abc.ABC):
    """An optimizer whose step is a `Rule`. Its vectors are `first` and `second` of `State`, as far as there are any."""

    initial_state = 0.0
    can_redo = True

    def __init__(self, config: OptimizerConfig) -> None:
        """`config` has the kind of the class, or of a subclass."""
        self._config = config

    @property
    @abc.abstractmethod
    def state_names(self) -> tuple[str, ...]:
        """Names of the vectors."""

    @abc.abstractmethod
    def rule(self, order: StepOrder) -> Rule:
        """Return the numbers of the step `order`."""

    def provisional_rule(self, order: StepOrder) -> Rule:
        """Return the numbers of a provisional step: the result of `order`, without a change of state."""
        return dataclasses.replace(self.rule(order), is_provisional=True)

    def step(self, inputs: Sequence[arithmetic.Input], operands: Operands, order: StepOrder) -> list[float]:
        """Make the step `order` in one pass; see `Optimizer`."""
        return arithmetic.step(inputs, self._state(operands), self.rule(order), redo=operands.redo)

    def provisional_step(self, inputs: Sequence[arithmetic.Input], operands: Operands, order: StepOrder) -> None:
        """Write the result of the step `order` in one pass; see `Optimizer`."""
        arithmetic.provisional_step(inputs, operands.total, self._state(operands), self.provisional_rule(order))

    def _count(self, order: StepOrder) -> int:
        """Return the number of the step, from 1, for corrections of a beginning."""
        return order.version + self._config.steps_before

    def _state(self, operands: Operands) -> State:
        first, second = (*(operands.vectors[name] for name in self.state_names), None, None)[:2]
        return State(operands.parameters, operands.target, first, second, operands.vectors.get("average"))


class Sgd(_Kernel):
    """Stochastic gradient descent, optionally with momentum or Nesterov momentum, defined as in torch.optim.SGD."""

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
            average_weight=average_weight(config, order.version),
        )


class Adam(_Kernel):
    """Adam (Kingma & Ba 2015), with weight decay added to the gradient, defined as in torch.optim.Adam."""

    state_names = ("first_moment", "second_moment")

    def rule(self, order: StepOrder) -> Rule:
        """Return the numbers of the step `order`, bias corrections included."""
        config, count = self._config, self._count(order)
        beta1, beta2 = config.betas
        rate = config.learning_rate * order.rate_factor
        return Rule(
            kind=config.kind,
            rate=rate / (1 - beta1**count),
            decay=self._decay(rate),
            beta1=beta1,
            beta2=beta2,
            inverse_root=1 / math.sqrt(1 - beta2**count),
            epsilon=config.epsilon,
            divisor=order.divisor,
            clip=order.clip,
            average_weight=average_weight(config, order.version),
        )

    def provisional_rule(self, order: StepOrder) -> Rule:
        """Return the numbers of a provisional step: the result of `order`, without a change of state.

        The second moment is mostly that of the previous version (see `Rule`), so its bias correction is too.
        """
        inverse_root = 1 / math.sqrt(1 - self._config.betas[1] ** (self._count(order) - 1))
        return dataclasses.replace(self.rule(order), is_provisional=True, inverse_root=inverse_root)

    def _decay(self, learning_rate: float) -> float:
        return self._config.weight_decay


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    def _decay(self, learning_rate: float) -> float:
        """Return the factor by which parameters are multiplied."""
        return 1 - learning_rate * self._config.weight_decay


class NAdam(Adam):
    """Adam with Nesterov momentum (Dozat 2016), defined as in torch.optim.NAdam: the momentum of step t is
    mu_t = beta1 * (1 - 0.96^(t * momentum_decay) / 2)."""

    def __init__(self, config: OptimizerConfig) -> None:
        """`config` has kind `nadam`."""
        super().__init__(config)
        self._product = (0, 1.0)

    def rule(self, order: StepOrder) -> Rule:
        """Return the numbers of the step `order`, which is update number `order.version` for the momenta."""
        rate = self._config.learning_rate * order.rate_factor
        count = self._count(order)
        momentum, following = self._momentum(count), self._momentum(count + 1)
        product = self.product_up_to(count)
        return dataclasses.replace(
            super().rule(order),
            kind="nadamw" if self._config.decoupled_weight_decay else "nadam",
            rate=rate * following / (1 - product * following),
            gradient_rate=rate * (1 - momentum) / (1 - product),
        )

    def _decay(self, learning_rate: float) -> float:
        decay = self._config.weight_decay
        return 1 - learning_rate * decay if self._config.decoupled_weight_decay else decay

    def _momentum(self, count: int) -> float:
        config = self._config
        return config.betas[0] * (1 - 0.5 * math.pow(0.96, count * config.momentum_decay))

    def product_up_to(self, count: int) -> float:
        """Return the product of the momenta of steps 1 to `count`, to the same bits in a run that was resumed.

        The product of the last call is extended. It is left alone once the difference of 1 and the product is 1.
        """
        last, product = self._product
        if count < last:
            last, product = 0, 1.0
        while last < count and product > 1e-17:
            last += 1
            product *= self._momentum(last)
        self._product = (count, product)
        return product


class Lion(_Kernel):
    """Lion (Chen et al. 2023): a step by the sign of a moving average, with decoupled weight decay."""

    state_names = ("momentum",)

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
            average_weight=average_weight(config, order.version),
        )


class Adagrad(_Kernel):
    """Adagrad (Duchi et al. 2011), defined as in torch.optim.Adagrad: `rate_decay` is its `lr_decay`."""

    state_names = ("squared_sum",)

    def __init__(self, config: OptimizerConfig) -> None:
        """`config` has kind `adagrad`."""
        super().__init__(config)
        self.initial_state = config.initial_accumulator

    def rule(self, order: StepOrder) -> Rule:
        """Return the numbers of the step `order`, the decay of the rate included."""
        config = self._config
        return Rule(
            kind="adagrad",
            rate=config.learning_rate * order.rate_factor / (1 + (self._count(order) - 1) * config.rate_decay),
            decay=config.weight_decay,
            epsilon=config.epsilon,
            divisor=order.divisor,
            clip=order.clip,
            average_weight=average_weight(config, order.version),
        )
