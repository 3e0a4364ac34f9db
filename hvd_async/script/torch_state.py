"""The state of an optimizer between torch's layout, a dictionary for each parameter, and the store's, a vector for each name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hvd_async.config import OptimizerConfig
from hvd_async.errors import ConfigError
from hvd_async.store.optimizers.factory import make_optimizer
from hvd_async.store.optimizers.kernels import NAdam
from hvd_async.store.optimizers.torch_class import scalar_names
from hvd_async.system.printable import printable
from hvd_async.vectors.flat import FlatParameters

# Torch's names of the store's vectors, by the kind of the optimizer; those of kind `torch` are torch's.
_NAMES: Mapping[str, Mapping[str, str]] = {
    "sgd": {"momentum": "momentum_buffer"},
    "adam": {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"},
    "adamw": {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"},
    "nadam": {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"},
    "lion": {"momentum": "exp_avg"},
    "adagrad": {"squared_sum": "sum"},
    "muon": {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"},  # of the AdamW beside it
}
_WITHOUT_STEP = ("SGD", "Lion", "Muon")


def state_for_torch(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    flat: FlatParameters,
    model: nn.Module,
    config: OptimizerConfig,
    num_steps: int,
) -> dict[str, Any]:
    """Return a `state_dict` that `optimizer`, which `config` describes, can load: that of `tensors`, a checkpoint's vectors by
    name ([size] float32 each), after `num_steps`. Beside a Muon `optimizer` is the one of both that the caller wants."""
    own = make_optimizer(config)
    scalars = scalar_names(own)
    places = {ours: theirs for ours, theirs in _names_of(optimizer, config).items() if ours not in scalars}
    factor = _share_of_sum(optimizer, config)
    parts = {
        theirs: flat.named_tensors(tensors[ours] if factor == 1 else tensors[ours] * factor)
        for ours, theirs in places.items()
    }
    for name in scalars:  # each group has its own
        parts[name] = {each: part.flatten()[0] for each, part in flat.named_tensors(tensors[name]).items()}
    if isinstance(own, NAdam):
        by_group = [torch.tensor(NAdam(each).product_up_to(num_steps)) for each in config.of_groups()]
        parts["mu_product"] = {piece.name: by_group[config.group_of(piece.name)] for piece in flat.pieces}
    has_step = type(optimizer).__name__ not in _WITHOUT_STEP
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = optimizer.state_dict()
    members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # What is frozen keeps the state that it has, such as the sums with which Adagrad begins.
    kept = {
        number: found["state"][number]
        for number, each in enumerate(members)
        if number in found["state"] and not each.requires_grad
    }
    trained = {
        number: {
            **({"step": torch.tensor(float(num_steps))} if has_step else {}),
            **{name: part[names[id(parameter)]].clone() for name, part in parts.items()},
        }
        for number, parameter in enumerate(members)
        if parameter.requires_grad and (parts or has_step)
    }
    found["state"] = dict(sorted({**kept, **trained}.items()))
    return found


def steps_of_torch(optimizers: Sequence[torch.optim.Optimizer], config: OptimizerConfig) -> int:
    """Return the number of steps that `optimizers`, which `config` describes, have made; for a class that does not count them,
    1 if it has state. Raises `ConfigError` for a state that is not of the same number of steps for all parameters."""
    trained = [(each, parameter) for each in optimizers for parameter in _trained(each)]
    states = [(each, each.state[parameter]) for each, parameter in trained if each.state.get(parameter)]
    steps = {int(state["step"]) for _, state in states if "step" in state}
    if len(steps) > 1:
        raise ConfigError(
            f"optimizer: got a state after {', '.join(map(str, sorted(steps)))} steps, expected equally many for all parameters"
        )
    if steps:
        num_steps = steps.pop()
    else:
        num_steps = int(
            any(state.get(name) is not None for each, state in states for name in _names_of(each, config).values())
        )
    if num_steps and len(states) < len(trained):
        raise ConfigError(
            f"optimizer: got a state of {len(states)} of {len(trained)} trained parameters, expected that of all, or none"
        )
    return num_steps


def vectors_of_torch(
    optimizers: Sequence[torch.optim.Optimizer], flat: FlatParameters, model: nn.Module, config: OptimizerConfig
) -> dict[str, Tensor]:
    """Return the store's vectors ([size] float32 each, on the CPU) for the state of `optimizers`, which `config` describes.

    Raises `ConfigError` if a part is missing or has another shape than its parameter.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    own = make_optimizer(config)
    scalars = scalar_names(own)
    found = {name: torch.zeros(flat.size) for name in own.state_names}
    places = [(each, ours, theirs) for each in optimizers for ours, theirs in _names_of(each, config).items()]
    for optimizer, ours, theirs in places:
        parts = flat.named_tensors(found[ours])
        for parameter in _trained(optimizer):
            value, part = optimizer.state[parameter].get(theirs), parts[names[id(parameter)]]
            if value is None or (ours not in scalars and value.shape != part.shape):
                got = "none" if value is None else f"shape {list(value.shape)}"
                raise ConfigError(
                    f"optimizer: state {printable(theirs)} of {printable(names[id(parameter)])}: got {got}, expected shape"
                    f" {list(part.shape)}"
                )
            part.copy_(torch.as_tensor(value) / _share_of_sum(optimizer, config))
    return found


def hash_of(vectors: Mapping[str, Tensor]) -> str:
    """Return a hash of `vectors`, by which ranks can tell whether theirs are alike."""
    digest = hashlib.sha256()
    for name in sorted(vectors):
        digest.update(name.encode())
        digest.update(vectors[name].numpy().tobytes())
    return digest.hexdigest()


def _names_of(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> Mapping[str, str]:
    """Return the names that `optimizer`, which `config` describes, has for vectors of the store."""
    own = make_optimizer(config)
    if config.kind == "muon" and type(optimizer).__name__ == "Muon":
        return {"first_moment": "momentum_buffer"}
    known = _NAMES.get(config.kind)
    return {name: name if known is None else known[name] for name in own.state_names}


def _share_of_sum(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> float:
    """Return what share of the store's vectors those of `optimizer` are: the momentum of torch's Muon is a mean, ours a sum."""
    return 1.0 - config.muon_momentum if type(optimizer).__name__ == "Muon" else 1.0


def _trained(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]
