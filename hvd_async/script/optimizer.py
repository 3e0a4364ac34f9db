"""The optimizer of a script: a description for the store, and the object that the script steps."""

from __future__ import annotations

import glob
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hvd_async.config import OptimizerConfig
from hvd_async.errors import ConfigError
from hvd_async.system.printable import printable

RateSchedule = Callable[[int], float]
"""Returns the learning rate of the update that makes a version (1, 2, ...), as a share of each group's own rate."""

# For each optimizer: the kind, our names of torch's settings, and the settings that must have the value given.
_KINDS: Mapping[str, tuple[str, Mapping[str, str], Mapping[str, Any]]] = {
    "Adam": (
        "adam",
        {"betas": "betas", "eps": "epsilon"},
        {"amsgrad": False, "maximize": False, "decoupled_weight_decay": False},
    ),
    "AdamW": ("adamw", {"betas": "betas", "eps": "epsilon"}, {"amsgrad": False, "maximize": False}),
    "NAdam": (
        "nadam",
        {
            "betas": "betas",
            "eps": "epsilon",
            "momentum_decay": "momentum_decay",
            "decoupled_weight_decay": "decoupled_weight_decay",
        },
        {"maximize": False},
    ),
    "Adagrad": (
        "adagrad",
        {"eps": "epsilon", "lr_decay": "rate_decay", "initial_accumulator_value": "initial_accumulator"},
        {"maximize": False},
    ),
    "SGD": ("sgd", {"momentum": "momentum", "nesterov": "nesterov"}, {"dampening": 0, "maximize": False}),
    # Not torch's, but of several packages, with settings of their own.
    "Lion": (
        "lion",
        {"betas": "betas"},
        {"maximize": False, "caution": False, "cautious_factor": 1.0, "decoupled_weight_decay": False},
    ),
}
_HARMLESS = {"foreach", "capturable", "differentiable", "fused"}
"""Settings of how torch computes a step, which the store computes in its own way."""
_OF_KINDS = {
    *("kind", "learning_rate", "betas", "epsilon", "momentum", "nesterov", "momentum_decay", "decoupled_weight_decay"),
    *("rate_decay", "initial_accumulator"),
}
"""Keys that are never those of the configuration."""


def describe_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, base: OptimizerConfig) -> OptimizerConfig:
    """Return the update that `optimizer` describes: class, groups and hyperparameters; the rest is that of `base`.

    Raises `ConfigError` for an optimizer, a setting or a group that the store cannot honour.
    """
    name = type(optimizer).__name__
    known = torch.optim.Optimizer if name == "Lion" else getattr(torch.optim, name, None)
    if name not in _KINDS or not (known is not None and isinstance(optimizer, known)):
        of_torch = ", ".join(each for each in _KINDS if each != "Lion")
        raise ConfigError(
            f"optimizer: got {name}, expected one of torch.optim's {of_torch}, or a Lion, whose updates the store makes"
        )
    kind, names, _ = _KINDS[name]
    for group in optimizer.param_groups:
        _check_settings(name, optimizer, group)
    _check_members(optimizer, model)
    groups = [_settings(group, names) for group in optimizer.param_groups]
    by_identity = {id(parameter): each for each, parameter in model.named_parameters()}
    tree: dict[str, Any] = base.model_dump(exclude=_OF_KINDS)
    tree |= {"kind": kind, **groups[0], "groups": []}
    for group, settings in zip(optimizer.param_groups[1:], groups[1:], strict=True):
        members = [by_identity[id(parameter)] for parameter in group["params"] if parameter.requires_grad]
        if members:
            tree["groups"].append({"match": [glob.escape(member) for member in members], **settings})
    try:
        return OptimizerConfig.model_validate(tree)
    except ValueError as error:
        raise ConfigError(f"optimizer: {printable(' '.join(str(error).split()))}") from None


def _check_settings(name: str, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> None:
    """Check that the store can honour the settings of `group`, one of `optimizer`, whose class has `name`."""
    _, names, fixed = _KINDS[name]
    own = {"lr", "weight_decay", *names}
    if missing := own - group.keys() - {"weight_decay"}:
        raise ConfigError(
            f"optimizer: {name}: got no {', '.join(sorted(missing))} in a group, expected {', '.join(sorted(own))}"
        )
    given = dict(group)
    if name == "Lion":
        given["decoupled_weight_decay"] = getattr(optimizer, "decoupled_wd", False)  # lion-pytorch keeps it outside
        for setting in sorted(optimizer.defaults.keys() - own - fixed.keys() - _HARMLESS):
            if given[setting]:
                raise ConfigError(f"optimizer: Lion: {setting}: got {given[setting]}, expected no such setting")
    if name == "Adagrad":  # torch begins the sums of all groups with the value of the constructor
        fixed = {**fixed, "initial_accumulator_value": optimizer.defaults["initial_accumulator_value"]}
    for setting, wanted in fixed.items():
        if given.get(setting, wanted) != wanted:
            raise ConfigError(f"optimizer: {name}: {setting}: got {given[setting]}, expected {wanted}, which the store does")


def _settings(group: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"learning_rate": float(group["lr"]), "weight_decay": float(group.get("weight_decay", 0.0))}
    for theirs, ours in names.items():
        value = group[theirs]
        found[ours] = (
            list(map(float, value))
            if isinstance(value, (tuple, list))
            else value
            if isinstance(value, bool)
            else float(value)
        )
    return found


def _check_members(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Check that the groups have exactly the trained parameters of `model`."""
    trained = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    of_model = {id(parameter) for parameter in model.parameters()}
    given = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if given - of_model:
        raise ConfigError(
            f"optimizer: got {len(given - of_model)} parameters that are not in the model, expected those of the model alone;"
            " make the optimizer from the model that you pass"
        )
    if missing := [name for key, name in trained.items() if key not in given]:
        raise ConfigError(
            f"optimizer: got no group for {len(missing)} parameters ({printable(', '.join(missing[:3]))}), expected all that"
            " require a gradient; freeze the others with requires_grad_(False)"
        )


def torch_schedule(factory: Callable[[torch.optim.Optimizer], Any]) -> RateSchedule:
    """Return the schedule of a torch scheduler, for `ScriptRun.prepare(schedule=)`.

    `factory` gets an optimizer with the rate 1 and returns a scheduler, such as `lambda optimizer:
    CosineAnnealingLR(optimizer, 1000)`. Version v has the rate before the scheduler's step number v.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = factory(optimizer)
    factors = [float(optimizer.param_groups[0]["lr"])]

    def schedule(version: int) -> float:
        while len(factors) < version:
            optimizer.step()
            scheduler.step()
            factors.append(float(optimizer.param_groups[0]["lr"]))
        return factors[version - 1]

    return schedule


def check_schedule(schedule: Any) -> RateSchedule:
    """Return `schedule` if it is a function of the version. Raises `ConfigError` otherwise, with what to do."""
    if isinstance(schedule, torch.optim.lr_scheduler.LRScheduler):
        raise ConfigError(
            "schedule: got a scheduler of torch, which counts the steps of one worker; expected a function of the version, or"
            " hvd_async.torch_schedule(lambda optimizer: ...), which makes one of it"
        )
    if not callable(schedule):
        raise ConfigError(f"schedule: got {type(schedule).__name__}, expected a function of the version")
    try:
        inspect.signature(schedule).bind(1)
        factor = float(schedule(1))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"schedule: expected a function from a version to a number: {printable(str(error))}") from None
    if not 0.0 <= factor < float("inf"):
        raise ConfigError(f"schedule: got {factor} for version 1, expected a number >= 0")
    rate_schedule: RateSchedule = schedule
    return rate_schedule


# The store's vectors, and torch's names for them, of the kinds whose whole state these are.
TORCH_STATE: Mapping[str, Mapping[str, str]] = {
    "sgd": {"momentum": "momentum_buffer"},
    "adam": {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"},
    "adamw": {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"},
}


def state_for_torch(
    optimizer: torch.optim.Optimizer, named: Mapping[str, Mapping[str, torch.Tensor]], model: nn.Module, version: int
) -> dict[str, Any]:
    """Return a `state_dict` that `optimizer`, as it was when it was described, can load, for the parameters of `version`.

    `named[state][name]`: the part of the store's vector that belongs to the parameter `name`, by torch's names of states.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = optimizer.state_dict()
    members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    has_steps = "exp_avg" in named
    found["state"] = {
        number: {
            **({"step": torch.tensor(float(version))} if has_steps else {}),
            **{theirs: vectors[names[id(parameter)]].clone() for theirs, vectors in named.items()},
        }
        for number, parameter in enumerate(members)
        if parameter.requires_grad and named
    }
    return found


class RunOptimizer:
    """The optimizer that `ScriptRun.prepare` returns. Updates are made by the store; `step` hands the gradient over."""

    def __init__(
        self, described: OptimizerConfig, zero: Callable[[], None], step: Callable[[float | None, Any], None]
    ) -> None:
        """`zero` clears the gradient, `step(weight, loss)` hands it over."""
        self._described = described
        self._zero = zero
        self._step = step

    @property
    def param_groups(self) -> Sequence[Mapping[str, Any]]:
        """The settings of each group, to be read: `lr` is the highest rate. They cannot be changed here."""
        return [
            {"lr": each.learning_rate, "weight_decay": each.weight_decay, "kind": each.kind}
            for each in self._described.of_groups()
        ]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradient. It is always set to zero, whatever `set_to_none`: the model's gradients are parts of one
        vector."""
        self._zero()

    def step(self, closure: None = None, *, weight: float | None = None, loss: torch.Tensor | float | None = None) -> None:
        """Hand over the gradient of the batch, and bring the parameters up to date. Waits as the strategy requires.

        Args:
            closure: refused; the store makes the update.
            weight: what the loss is summed or averaged over, such as the number of examples or tokens.
            loss: the loss of the batch, for logs alone: summed or averaged like that of `backward`.

        Raises `ConfigError` if the batch has been handed over already, or there was no backward pass.
        """
        if closure is not None:
            raise ConfigError("optimizer.step: got a closure, expected none: the store makes the update, once for each push")
        self._step(weight, loss)

    def state_dict(self) -> dict[str, Any]:
        """Raises `ConfigError`: the state is at the store."""
        raise ConfigError(
            "optimizer.state_dict: the state is at the store, which saves it in the run's checkpoints; after the loop,"
            " run.optimizer_state_dict() returns it"
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `ConfigError`: a run is resumed with its own checkpoints."""
        raise ConfigError("optimizer.load_state_dict: the state is at the store; resume the run with init(..., resume=True)")
