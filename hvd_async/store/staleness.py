"""What is done to a stale gradient. Pure functions of the arrival; the bound on staleness is the store's own."""

from __future__ import annotations

import torch

from hvd_async.config import StrategyConfig


def needs_base_parameters(strategy: StrategyConfig) -> bool:
    """Whether `adjust` wants the parameters on which a gradient was computed."""
    return strategy.staleness_policy == "delay_compensation"


def adjust(
    gradient: torch.Tensor, strategy: StrategyConfig, *, staleness: int, tokens: int, drift: torch.Tensor | None
) -> torch.Tensor:
    """The gradient to accumulate in place of `gradient` ([size], float32, the sum over `tokens` target tokens; unchanged).

    `drift`: parameters now - parameters of the base version, for `delay_compensation`. A fresh gradient is returned as is.

    - `inverse`: gradient / (1 + staleness), after Zhang et al. (2016), "Staleness-aware async-SGD for distributed deep
      learning", whose divisor is the staleness; the 1 keeps fresh gradients whole.
    - `delay_compensation`: g + lambda g * g * drift for the mean gradient g, after Zheng et al. (2017), "Asynchronous
      stochastic gradient descent with delay compensation", equation 10.
    """
    if staleness == 0 or strategy.staleness_policy == "none":
        return gradient
    if strategy.staleness_policy == "inverse":
        return gradient / (1 + staleness)
    assert drift is not None  # the caller asked needs_base_parameters
    return torch.addcmul(gradient, gradient * gradient, drift, value=strategy.delay_compensation / tokens)
