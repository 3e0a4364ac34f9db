"""The optimizer step: schedule, clipping, torch.optim on the flat vector, moving average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hvd_async.config import OptimizerConfig
from hvd_async.store.schedule import learning_rate


@dataclass(frozen=True)
class StepFigures:
    """What an optimizer step did: the rate it used and the norm of the gradient before clipping."""

    learning_rate: float
    gradient_norm: float


class UpdateRule:
    """Turns a combined gradient into the next parameters, in place.

    Attributes:
        parameters: [size], float32; owned by this object while it lives.
        average: [size], float32, the exponential moving average of parameters, or None where it is off.
    """

    def __init__(self, parameters: torch.Tensor, config: OptimizerConfig) -> None:
        """`parameters` ([size], float32) becomes this object's own."""
        self.parameters = parameters
        self.average = parameters.clone() if config.average_decay else None
        self._config = config
        self._leaf = parameters.detach().requires_grad_()  # shares the memory
        self._optimizer = _make_optimizer(config, self._leaf)

    def step(self, gradient: torch.Tensor, version: int, tokens: int) -> StepFigures | None:
        """Make `version` with `gradient` ([size], float32; overwritten), `tokens` target tokens having been seen with it.

        Returns None, and changes nothing, if the gradient's norm is not finite.
        """
        norm = float(torch.linalg.vector_norm(gradient))
        if not math.isfinite(norm):
            return None
        if self._config.clip_norm is not None and norm > self._config.clip_norm:
            gradient.mul_(self._config.clip_norm / norm)
        group = self._optimizer.param_groups[0]
        group["lr"] = learning_rate(self._config.schedule, self._config.learning_rate, version, tokens)
        self._leaf.grad = gradient
        self._optimizer.step()
        self._leaf.grad = None
        if self.average is not None:
            # Young averages follow closely, as in tf.train.ExponentialMovingAverage with num_updates.
            decay = min(self._config.average_decay, (1 + version) / (10 + version))
            self.average.lerp_(self.parameters, 1 - decay)
        return StepFigures(float(group["lr"]), norm)

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor that decides the future, by name. The vectors are the live ones, not copies."""
        tensors = {"parameters": self.parameters}
        if self.average is not None:
            tensors["average"] = self.average
        for name, value in self._optimizer.state_dict()["state"].get(0, {}).items():
            if value is not None:
                tensors[f"optimizer.{name}"] = torch.as_tensor(value)
        return tensors

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from what `state` gave. Raises `ValueError` if it is of another size or optimizer."""
        expected = {"parameters"} | ({"average"} if self.average is not None else set())
        if missing := expected - tensors.keys():
            raise ValueError(f"got no {', '.join(sorted(missing))}")
        if tensors["parameters"].shape != self.parameters.shape:
            raise ValueError(f"got {tensors['parameters'].numel()} parameters, expected {self.parameters.numel()}")
        self.parameters.copy_(tensors["parameters"])
        if self.average is not None:
            self.average.copy_(tensors["average"])
        state = {name.removeprefix("optimizer."): t for name, t in tensors.items() if name.startswith("optimizer.")}
        document: dict[str, Any] = self._optimizer.state_dict()
        document["state"] = {0: state} if state else {}
        self._optimizer.load_state_dict(document)


def _make_optimizer(config: OptimizerConfig, parameters: torch.Tensor) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.kind == "sgd":
        return torch.optim.SGD(
            [parameters], rate, momentum=config.momentum, nesterov=config.nesterov, weight_decay=decay, fused=True
        )
    kind = torch.optim.Adam if config.kind == "adam" else torch.optim.AdamW
    return kind([parameters], rate, betas=config.betas, eps=config.epsilon, weight_decay=decay, fused=True)
