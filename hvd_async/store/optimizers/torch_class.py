"""Optimizers of torch.optim on the store's vectors, for those that our own arithmetic lacks."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hvd_async.config import OptimizerConfig
from hvd_async.errors import ConfigError
from hvd_async.store.optimizers.protocol import Operands, Optimizer, StepOrder, average_weight, summed
from hvd_async.system.printable import printable
from hvd_async.vectors import arithmetic

_PROBED = 8
"""Elements of the vector with which a class is tried; a scalar has one."""


@dataclass(frozen=True)
class _StateOfClass:
    """The state that a class has for a parameter after a step: the names of vectors like the parameter, and of scalars."""

    vectors: tuple[str, ...]
    scalars: tuple[str, ...]


class TorchOptimizer:
    """A class of torch.optim whose update of an element depends on nothing but that element's own gradients.

    So it may take the vector of a group, or any part of it, as a single parameter. A scalar of its state is stored as a vector of
    equal elements, whatever the parts; `step`, the number of steps, is not stored at all.

    A provisional step works on a copy of the state: a trial with part of the gradient.
    """

    can_redo = False
    initial_state = 0.0  # never read: the first step lets the class begin

    def __init__(self, config: OptimizerConfig) -> None:
        """`config` has kind `torch`. Raises `ConfigError` if the class refuses the settings."""
        self._config = config
        self._state = _state_of_class(config.torch_class, json.dumps(_arguments(config)))

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the vectors: those of the state in torch."""
        return (*self._state.vectors, *self._state.scalars)

    def step(self, inputs: Sequence[arithmetic.Input], operands: Operands, order: StepOrder) -> list[float]:
        """Make the step `order`; see `Optimizer`."""
        partials = self._make(inputs, operands, order, operands.vectors)
        weight, average = average_weight(self._config, order.version), operands.vectors.get("average")
        if weight is not None and average is not None:
            average.add_((operands.target - average).mul_(weight))
        return partials

    def provisional_step(self, inputs: Sequence[arithmetic.Input], operands: Operands, order: StepOrder) -> None:
        """Write the result of the step `order`; see `Optimizer`."""
        self._make(
            summed(inputs, operands), operands, order, {name: operands.vectors[name].clone() for name in self.state_names}
        )

    def _make(
        self,
        inputs: Sequence[arithmetic.Input],
        operands: Operands,
        order: StepOrder,
        vectors: Mapping[str, torch.Tensor],
    ) -> list[float]:
        """Make the step on `vectors`, the state; return the sums of squares."""
        gradient = torch.empty_like(operands.target)
        partials = arithmetic.sum_inputs(inputs, gradient, order.divisor)
        if order.divisor != 1.0:
            gradient.div_(order.divisor)
        if order.clip != 1.0:
            gradient.mul_(order.clip)
        if operands.target is not operands.parameters:
            operands.target.copy_(operands.parameters)
        parameter = nn.Parameter(operands.target)  # the same memory
        parameter.grad = gradient
        optimizer = _optimizer_of(self._config, parameter)
        for group in optimizer.param_groups:
            group["lr"] = self._config.learning_rate * order.rate_factor
        done = order.version + self._config.steps_before - 1
        if done:
            optimizer.state[parameter] = self._loaded(vectors, done)
        optimizer.step()
        self._save(optimizer.state[parameter], vectors)
        return partials

    def _loaded(self, vectors: Mapping[str, torch.Tensor], num_steps: int) -> dict[str, Any]:
        """Return the state in torch after `num_steps`."""
        scalars = {name: vectors[name][0].clone() for name in self._state.scalars}
        return {"step": torch.tensor(float(num_steps)), **scalars, **{name: vectors[name] for name in self._state.vectors}}

    def _save(self, state: Mapping[str, Any], vectors: Mapping[str, torch.Tensor]) -> None:
        for name in self._state.vectors:
            if state[name].data_ptr() != vectors[name].data_ptr():
                vectors[name].copy_(state[name])
        for name in self._state.scalars:
            vectors[name].fill_(float(state[name]))


def scalar_names(optimizer: Optimizer) -> tuple[str, ...]:
    """Return the names of the vectors whose elements are all one scalar of the state."""
    return optimizer._state.scalars if isinstance(optimizer, TorchOptimizer) else ()


def _arguments(config: OptimizerConfig) -> dict[str, Any]:
    """Return the arguments of the class besides the rate, which changes from step to step."""
    decay = {"weight_decay": config.weight_decay} if config.weight_decay else {}
    return {**config.settings, **decay}


def _optimizer_of(config: OptimizerConfig, parameter: nn.Parameter) -> torch.optim.Optimizer:
    """Return the optimizer of `parameter`, without foreach, which would need more memory."""
    kind = getattr(torch.optim, config.torch_class)
    found: torch.optim.Optimizer = kind([parameter], lr=config.learning_rate, foreach=False, **_arguments(config))
    return found


@functools.cache
def _state_of_class(name: str, arguments: str) -> _StateOfClass:
    """Return the state of the class `name` of torch.optim with `arguments`, a JSON object, which a trial step shows."""
    kind, given = getattr(torch.optim, name), json.loads(arguments)
    parameter = nn.Parameter(torch.zeros(_PROBED))
    parameter.grad = torch.ones(_PROBED)
    try:
        optimizer = kind([parameter], lr=1e-3, foreach=False, **given)
        optimizer.step()
    except (TypeError, ValueError, AssertionError) as error:
        known = sorted(set(inspect.signature(kind).parameters) - {"params", "lr", "foreach"})
        raise ConfigError(
            f"optimizer.settings: {name}: {printable(str(error))}; got {', '.join(sorted(given)) or 'none'}, expected some of"
            f" {', '.join(known)}"
        ) from None
    state = {name: value for name, value in optimizer.state[parameter].items() if value is not None and name != "step"}
    vectors = tuple(name for name, value in state.items() if torch.is_tensor(value) and value.numel() == _PROBED)
    return _StateOfClass(vectors, tuple(name for name in state if name not in vectors))
