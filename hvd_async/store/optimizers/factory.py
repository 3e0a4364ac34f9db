"""Optimizers by their configuration."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from hvd_async.config import OptimizerConfig
from hvd_async.errors import ConfigError
from hvd_async.store.optimizers.kernels import Adagrad, Adam, AdamW, Lion, NAdam, Sgd
from hvd_async.store.optimizers.protocol import Optimizer
from hvd_async.store.optimizers.torch_class import TorchOptimizer

_KINDS: Mapping[str, Callable[[OptimizerConfig], Optimizer]] = {
    "sgd": Sgd,
    "adam": Adam,
    "adamw": AdamW,
    "nadam": NAdam,
    "lion": Lion,
    "adagrad": Adagrad,
    "torch": TorchOptimizer,
}


def make_optimizer(config: OptimizerConfig) -> Optimizer:
    """Return the optimizer that `config` names."""
    return _KINDS[config.kind](config)


def check_optimizer(config: OptimizerConfig) -> None:
    """Raise `ConfigError` for settings that a class of torch refuses, or groups whose state has other vectors."""
    names = {make_optimizer(each).state_names for each in config.of_groups()}
    if len(names) > 1:
        listed = " and ".join(sorted(", ".join(each) or "none" for each in names))
        raise ConfigError(f"optimizer.groups: got settings with state {listed}, expected the same vectors for all groups")


def make_optimizers(config: OptimizerConfig, ranges: Sequence[slice]) -> list[tuple[slice, Optimizer]]:
    """Return each range of elements that is not empty with the optimizer of its group; `ranges[k]` is that of group k."""
    settings = config.of_groups()
    return [
        (range_, make_optimizer(each)) for range_, each in zip(ranges, settings, strict=True) if range_.start < range_.stop
    ]


def ranges_within(ranges: Sequence[slice], part: slice) -> list[slice]:
    """Return `ranges`, of the whole vector, as far as they lie in `part`, counted from its start."""
    ends = [max(0, min(each.stop, part.stop) - part.start) for each in ranges]
    return [slice(start, end) for start, end in itertools.pairwise([0, *ends])]


def state_names(config: OptimizerConfig) -> list[str]:
    """Return the names of a shard's vectors beside the parameters: all that a checkpoint needs, and `pending_sum`."""
    average = ["average"] if config.average_decay else []
    return [*make_optimizer(config).state_names, *average, "pending_sum"]


def can_redo(config: OptimizerConfig) -> bool:
    """Whether another process can complete a step in which the store's process died."""
    return all(make_optimizer(each).can_redo for each in config.of_groups())
