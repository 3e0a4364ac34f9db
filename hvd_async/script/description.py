"""Descriptions of torch optimizers, by class, groups and hyperparameters, as the store's configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import nn

from hvd_async.config import OptimizerConfig, check
from hvd_async.config.optimizer import TorchClass
from hvd_async.config.script_keys import OF_OPTIMIZER
from hvd_async.errors import ConfigError
from hvd_async.script.muon_description import keys_of_muon, patterns_of
from hvd_async.system.printable import printable
from hvd_async.tasks.user_values import describe_value

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
_UNFIT: Mapping[str, str] = {
    "Adafactor": "whose update of an element depends on the rows and columns of its tensor, of which the store knows nothing",
    "LBFGS": "which computes the loss several times in a step",
    "SparseAdam": "which takes sparse gradients; those of `nn.Embedding(sparse=True)` cannot be sent",
}
"""Classes of torch.optim that cannot work on the store's vectors, and why."""


def describe_optimizers(
    optimizers: Sequence[torch.optim.Optimizer], model: nn.Module, base: OptimizerConfig
) -> OptimizerConfig:
    """Return the update that `optimizers`, one or a Muon and an AdamW, describe: class, groups and hyperparameters; the rest is
    that of `base`.

    The store's own arithmetic makes it if it can, else torch's class (kind `torch`). Raises `ConfigError` for an optimizer, a
    setting or a group that the store cannot honour.
    """
    for each in optimizers:
        _check_class(each)
    names = [type(each).__name__ for each in optimizers]
    is_with_muon = sorted(names) in (["Muon"], ["AdamW", "Muon"])
    if len(optimizers) != 1 and not is_with_muon:
        raise ConfigError(
            f"optimizer: got {' and '.join(names) or 'none'}, expected one optimizer, or a Muon of torch.optim for the matrices"
            " and an AdamW for the rest; groups of one optimizer may have settings of their own"
        )
    _check_members(optimizers, model)
    tree: dict[str, Any] = base.model_dump(exclude=OF_OPTIMIZER)
    if is_with_muon:
        muon = optimizers[names.index("Muon")]
        others = [entry for each in optimizers if each is not muon for entry in _groups_of(each, model)]
        tree |= keys_of_muon(muon, others, model)
    else:
        tree |= _keys_of(optimizers[0], model)
    return check(OptimizerConfig, tree, "optimizer")


def _keys_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return the keys of `optimizer` for a single optimizer."""
    name = type(optimizer).__name__
    _check_first_sums(optimizer)
    reasons = [_unlike(name, optimizer, group) for group in optimizer.param_groups] if name in _KINDS else [""]
    if name == "Lion" and any(reasons):
        raise ConfigError(next(filter(None, reasons)))
    if name in _KINDS and not any(reasons):
        kind: dict[str, Any] = {"kind": _KINDS[name][0]}
        groups = [_settings(group, _KINDS[name][1]) for group in optimizer.param_groups]
    else:
        kind = {"kind": "torch", "torch_class": name}
        groups = [_settings_of_class(optimizer, group) for group in optimizer.param_groups]
    return {**kind, **groups[0], "groups": _entries(optimizer.param_groups[1:], groups[1:], model)}


def _groups_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[dict[str, Any]]:
    """Return the groups of an AdamW that have trained parameters, as entries of `optimizer.groups`. Raises `ConfigError` for a
    setting that the store's arithmetic cannot honour."""
    for group in optimizer.param_groups:
        if reason := _unlike("AdamW", optimizer, group):
            raise ConfigError(reason)
    settings = [_settings(group, _KINDS["AdamW"][1]) for group in optimizer.param_groups]
    return _entries(optimizer.param_groups, settings, model)


def _entries(
    groups: Sequence[Mapping[str, Any]], settings: Sequence[Mapping[str, Any]], model: nn.Module
) -> list[dict[str, Any]]:
    """Return the `settings` of those `groups` that have trained parameters, as entries of `optimizer.groups`."""
    both = [(patterns_of(group, model), own) for group, own in zip(groups, settings, strict=True)]
    return [{"match": patterns, **own} for patterns, own in both if patterns]


def _check_class(optimizer: torch.optim.Optimizer) -> None:
    """Raise `ConfigError` unless the class of `optimizer` is one of torch.optim's that the store can use, or a Lion."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer: got {describe_value(optimizer)}, expected an optimizer of torch.optim on the model's parameters,"
            " or a Muon and an AdamW in a list"
        )
    name = type(optimizer).__name__
    if type(optimizer).__module__.partition(".")[0] == "horovod":
        raise ConfigError(
            f"optimizer: got {name} in hvd.DistributedOptimizer, expected the {name} itself: the run sums gradients, and its"
            " strategy says how"
        )
    is_of_torch = type(optimizer) is getattr(torch.optim, name, None)
    if is_of_torch and name in _UNFIT:
        raise ConfigError(
            f"optimizer: got {name}, {_UNFIT[name]}; expected one of {', '.join(get_args(TorchClass))}, or a Lion"
        )
    if name != "Lion" and not (is_of_torch and name in (*get_args(TorchClass), "Muon")):
        raise ConfigError(
            f"optimizer: got {type(optimizer).__module__}.{name}, which is not one of torch.optim's, so that the store does not"
            f" know its update; expected one of torch.optim's {', '.join(get_args(TorchClass))}, or a Lion"
        )


def _unlike(name: str, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> str:
    """Return why the store's arithmetic cannot honour the settings of `group`, one of `optimizer`, whose class has `name`."""
    _, names, fixed = _KINDS[name]
    own = {"lr", "weight_decay", *names}
    if missing := own - group.keys() - {"weight_decay"}:
        return f"optimizer: {name}: got no {', '.join(sorted(missing))} in a group, expected {', '.join(sorted(own))}"
    given = dict(group)
    if name == "Lion":
        given["decoupled_weight_decay"] = getattr(optimizer, "decoupled_wd", False)  # lion-pytorch keeps it outside
        for setting in sorted(optimizer.defaults.keys() - own - fixed.keys() - _HARMLESS):
            if given[setting]:
                return f"optimizer: Lion: {setting}: got {given[setting]}, expected no such setting"
    for setting, wanted in fixed.items():
        if given.get(setting, wanted) != wanted:
            return f"optimizer: {name}: {setting}: got {given[setting]}, expected {wanted}, which the store does"
    return ""


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


def _settings_of_class(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `group` as keys of kind `torch`."""
    names = inspect.signature(type(optimizer)).parameters.keys() - {"params", "lr", "weight_decay"} - _HARMLESS
    settings = {}
    for name in sorted(names & group.keys()):
        value = group[name]
        if isinstance(value, torch.Tensor):
            value = float(value)
        settings[name] = list(map(float, value)) if isinstance(value, tuple | list) else value
    return {
        "learning_rate": float(group["lr"]),
        "weight_decay": float(group.get("weight_decay", 0.0)),
        "settings": settings,
    }


def _check_members(optimizers: Sequence[torch.optim.Optimizer], model: nn.Module) -> None:
    """Check that the groups have exactly the trained parameters of `model`."""
    trained = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    of_model = {id(parameter) for parameter in model.parameters()}
    members = [{id(parameter) for group in each.param_groups for parameter in group["params"]} for each in optimizers]
    given = set().union(*members)
    if num_shared := sum(map(len, members)) - len(given):
        words = "1 parameter" if num_shared == 1 else f"{num_shared} parameters"
        raise ConfigError(f"optimizer: got {words} in two optimizers, expected each in one of them")
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


def _check_first_sums(optimizer: torch.optim.Optimizer) -> None:
    """Check that all groups of Adagrad begin with the sums of the constructor, as they do in torch."""
    setting = "initial_accumulator_value"
    wanted = optimizer.defaults.get(setting)
    for group in optimizer.param_groups:
        if group.get(setting) != wanted:
            raise ConfigError(
                f"optimizer: Adagrad: {setting}: got {group[setting]} in a group, expected {wanted}, with which torch begins the"
                " sums of all groups"
            )
