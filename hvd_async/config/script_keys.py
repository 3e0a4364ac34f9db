"""Keys that a script decides itself, so that its configuration must not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hvd_async.errors import ConfigError

OF_OPTIMIZER = {
    *("kind", "learning_rate", "weight_decay", "groups", "betas", "epsilon", "momentum", "nesterov", "momentum_decay"),
    *("decoupled_weight_decay", "rate_decay", "initial_accumulator", "torch_class", "settings", "steps_before"),
    *("muon_momentum", "muon_iterations", "muon_scale", "muon_except"),
}
"""Keys of `optimizer` that a script's optimizer decides."""


def check_script_keys(tree: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a key in the configuration `tree` of a script, plain data, that the script decides."""
    for section, found in tree.items():
        if not isinstance(found, Mapping):  # the check of the configuration says so
            continue
        for key in found:
            if hint := hint_for_script(f"{section}.{key}"):
                raise ConfigError(f"{section}.{key}: got a value for a script, expected none: {hint}")


def hint_for_script(key: str) -> str:
    """Return what decides `key`, a dotted key, in place of the configuration of a script; empty if that decides."""
    section, _, name = key.partition(".")
    if section == "optimizer" and name in OF_OPTIMIZER:
        return (
            "the optimizer that the script passes to prepare decides; let the script take this as an argument of its own,"
            " after --"
        )
    if section == "task" and name.partition(".")[0] not in ("kind", "script"):
        return "the script is the task; let the script take this as an argument of its own, after --"
    if key == "strategy.micro_batches":
        return "the script's loop divides a batch, with optimizer.pull() between the parts (docs/own-loop.md)"
    return ""
