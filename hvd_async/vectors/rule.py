"""Rules of optimizer steps: their formulas, numbers and vectors, and each rule as torch operations."""

from __future__ import annotations

from dataclasses import dataclass

import torch

KINDS = ("sgd", "adam", "adamw", "nadam", "nadamw", "lion", "adagrad")
"""The kinds of `Rule`; `_native.c` and `cuda` know them by their places here."""
DECOUPLED = ("adamw", "nadamw", "lion")
"""The kinds whose weight decay is a factor of the parameters; in the others, it is added to the gradient."""


@dataclass(frozen=True)
class Rule:
    """Numbers of one optimizer step, rounded to float32 where used.

        g = sum / divisor * clip
        sgd:     g = g + decay * p;  m = momentum * m + g;  g = m, or g + momentum * m (nesterov);  p = p - rate * g
        adam:    g = g + decay * p   (adamw: p = p * decay)
                 m = m + (g - m) * (1 - beta1);  v = beta2 * v + g * g * (1 - beta2)
                 p = p - m / (sqrt(v) * inverse_root + epsilon) * rate
        nadam:   g, m and v as for adam   (nadamw: as for adamw)
                 p = p - (m * rate + g * gradient_rate) / (sqrt(v) * inverse_root + epsilon)
        lion:    p = p * decay - sign(m * beta1 + g * (1 - beta1)) * rate;  m = m * beta2 + g * (1 - beta2)
        adagrad: g = g + decay * p;  s = s + g * g;  p = p - g / (sqrt(s) + epsilon) * rate
        average = average + (p - average) * average_weight

    A provisional step writes only the target. It uses the formulas above, except that in adam and nadam

               v = max(v, g * g * (1 - beta2))

    `v` is not updated, because the squared mean of some of an update's gradients is larger than that of all. But `v` is bounded
    below by (1 - beta2) g^2: otherwise an element with no gradient so far would take an arbitrarily large step. Adagrad's `s` is
    updated: it weighs all gradients alike, so that the difference vanishes, and no step is larger than the rate.

    The formulas are those of torch.optim (Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2; Dozat 2016;
    Duchi et al. 2011), and of Chen et al. 2023, algorithm 2, for lion. The sign of 0 and of NaN is 0.
    """

    kind: str
    """One of `KINDS`."""
    rate: float
    """Factor of the direction; for Adam it includes the first correction, learning rate / (1 - beta1^t). For NAdam the
    factor of the moving average of gradients."""
    decay: float = 0.0
    """Factor of the parameter that is added to the gradient; for `DECOUPLED` kinds the factor of parameters, 1 - learning
    rate * decay."""
    beta1: float = 0.0
    """For sgd: the momentum."""
    beta2: float = 0.0
    inverse_root: float = 1.0
    """Adam's second correction, 1 / sqrt(1 - beta2^t)."""
    epsilon: float = 0.0
    gradient_rate: float = 0.0
    """NAdam's factor of the gradient."""
    nesterov: bool = False
    divisor: float = 1.0
    clip: float = 1.0
    average_weight: float | None = None
    """Weight of the new parameters in the moving average, if there is one."""
    is_provisional: bool = False
    """Whether only `target` is written, with the result of the step, and nothing else changes."""


@dataclass(frozen=True)
class State:
    """The vectors of an optimizer, [size] float32 each, changed in place. `target` may be `parameters`."""

    parameters: torch.Tensor
    target: torch.Tensor
    first: torch.Tensor | None = None
    """`m` of `Rule`'s formulas; for adagrad `s`."""
    second: torch.Tensor | None = None
    """`v` of `Rule`'s formulas."""
    average: torch.Tensor | None = None


def step_piece(gradient: torch.Tensor, state: State, rule: Rule, piece: slice) -> None:
    """Make the step of `rule` on the elements `piece` of `state`, from their `gradient`: [piece] float32, the sum divided."""
    parameters = state.parameters[piece]
    if rule.clip != 1.0:
        gradient = gradient * rule.clip
    if rule.kind in DECOUPLED:
        parameters = parameters * rule.decay
    elif rule.decay:
        gradient = gradient + parameters * rule.decay
    parameters = parameters - _STEPS[rule.kind](gradient, state, rule, piece)
    state.target[piece] = parameters
    if state.average is not None and rule.average_weight is not None and not rule.is_provisional:
        average = state.average[piece]
        average.add_((parameters - average).mul_(rule.average_weight))


def _sgd(gradient: torch.Tensor, state: State, rule: Rule, piece: slice) -> torch.Tensor:
    """Return what SGD subtracts from the parameters, and update its vectors unless the step is provisional."""
    if state.first is not None:
        first = _tried(state.first[piece], rule)
        first.mul_(rule.beta1).add_(gradient)
        gradient = gradient + first * rule.beta1 if rule.nesterov else first
    return gradient * rule.rate


def _adam(gradient: torch.Tensor, state: State, rule: Rule, piece: slice) -> torch.Tensor:
    """Return what Adam or NAdam subtracts; otherwise as `_sgd`."""
    assert state.first is not None and state.second is not None
    first, second = _tried(state.first[piece], rule), state.second[piece]
    first.add_((gradient - first).mul_(1 - rule.beta1))
    added = (gradient * gradient).mul_(1 - rule.beta2)
    second = torch.where(added > second, added, second) if rule.is_provisional else second.mul_(rule.beta2).add_(added)
    divisor = _square_root(second).mul_(rule.inverse_root).add_(rule.epsilon)
    if rule.kind in ("nadam", "nadamw"):
        return (first * rule.rate).add_(gradient * rule.gradient_rate).div_(divisor)
    return (first / divisor).mul_(rule.rate)


def _lion(gradient: torch.Tensor, state: State, rule: Rule, piece: slice) -> torch.Tensor:
    """Return what Lion subtracts; otherwise as `_sgd`."""
    assert state.first is not None
    first = state.first[piece]
    direction = (first * rule.beta1).add_(gradient * (1 - rule.beta1)).sign_()
    if not rule.is_provisional:
        first.mul_(rule.beta2).add_(gradient * (1 - rule.beta2))
    return direction.mul_(rule.rate)


def _adagrad(gradient: torch.Tensor, state: State, rule: Rule, piece: slice) -> torch.Tensor:
    """Return what Adagrad subtracts; otherwise as `_sgd`."""
    assert state.first is not None
    total = _tried(state.first[piece], rule).add_(gradient * gradient)
    return (gradient / _square_root(total).add_(rule.epsilon)).mul_(rule.rate)


_STEPS = {"sgd": _sgd, "adam": _adam, "adamw": _adam, "nadam": _adam, "nadamw": _adam, "lion": _lion, "adagrad": _adagrad}


def _square_root(values: torch.Tensor) -> torch.Tensor:
    """Return the correctly rounded square root; torch's float32 root on the CPU is not, where MKL computes it."""
    return values.double().sqrt().float() if values.device.type == "cpu" else values.sqrt()


def _tried(vector: torch.Tensor, rule: Rule) -> torch.Tensor:
    return vector.clone() if rule.is_provisional else vector
