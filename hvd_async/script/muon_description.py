"""Description of torch's Muon, with an AdamW for what it leaves out, as the store's configuration."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hvd_async.config import OptimizerConfig
from hvd_async.errors import ConfigError
from hvd_async.system.printable import printable

# Settings of torch's that the store's arithmetic has once and for all.
_FIXED: Mapping[str, Any] = {"nesterov": True, "ns_coefficients": (3.4445, -4.7750, 2.0315), "eps": 1e-7}
_MOST_STEPS = 20
_ALL = OptimizerConfig(kind="muon", muon_except=())
_SCALES: Mapping[str | None, str] = {None: "original", "original": "original", "match_rms_adamw": "adamw"}


def keys_of_muon(muon: torch.optim.Optimizer, others: Sequence[Mapping[str, Any]], model: nn.Module) -> dict[str, Any]:
    """Return the keys of `optimizer` for `muon` and for `others`, entries of `optimizer.groups` for the AdamW beside it, which
    have the parameters of `model` that `muon` has not.

    Raises `ConfigError` for a setting or a parameter that the store cannot honour.
    """
    members = {id(each) for group in muon.param_groups for each in group["params"]}
    matrices = []
    for name, parameter in model.named_parameters():
        is_matrix = _ALL.is_matrix(name, parameter.shape)
        if id(parameter) not in members:
            matrices += [name] if is_matrix and parameter.requires_grad else []
        elif not is_matrix and parameter.requires_grad:
            raise ConfigError(
                f"optimizer: Muon: got {printable(name)} of shape {list(parameter.shape)}, expected matrices with at least two"
                " rows and columns; give it to the AdamW beside it"
            )
    shared = [_shared(group) for group in muon.param_groups]
    for each in shared[1:]:
        if each != shared[0]:
            raise ConfigError(
                f"optimizer: Muon: got groups with {_in_words(shared[0])} and with {_in_words(each)}, expected groups that differ"
                " in lr and weight_decay alone"
            )
    own = [
        {
            "match": patterns_of(group, model),
            "learning_rate": float(group["lr"]),
            "weight_decay": float(group["weight_decay"]),
        }
        for group in muon.param_groups
    ]
    first, *later = [group for group in own if group["match"]] or [own[0]]
    return {
        "kind": "muon",
        **shared[0],
        "learning_rate": first["learning_rate"],
        "weight_decay": first["weight_decay"],
        "muon_except": list(map(glob.escape, matrices)),
        "groups": [*later, *others],
    }


def patterns_of(group: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Return patterns for the trained parameters of `model` in `group`, one each."""
    members = {id(each) for each in group["params"]}
    return [glob.escape(name) for name, each in model.named_parameters() if id(each) in members and each.requires_grad]


def _shared(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `group` that all groups share."""
    for setting, wanted in _FIXED.items():
        given = tuple(group[setting]) if isinstance(wanted, tuple) else group[setting]
        if given != wanted:
            raise ConfigError(f"optimizer: Muon: {setting}: got {group[setting]}, expected {wanted}, which the store does")
    if not 0.0 <= group["momentum"] < 1.0:
        raise ConfigError(f"optimizer: Muon: momentum: got {group['momentum']}, expected a number >= 0, < 1")
    if not 1 <= group["ns_steps"] <= _MOST_STEPS:
        raise ConfigError(f"optimizer: Muon: ns_steps: got {group['ns_steps']}, expected 1 to {_MOST_STEPS}")
    return {
        "muon_momentum": float(group["momentum"]),
        "muon_iterations": int(group["ns_steps"]),
        "muon_scale": _SCALES[group["adjust_lr_fn"]],
    }


def _in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())
