"""Optimizers by their configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hvd_async.config import OptimizerConfig
from hvd_async.errors import ConfigError
from hvd_async.store.optimizers.kernels import Adagrad, Adam, AdamW, Lion, NAdam, Sgd
from hvd_async.store.optimizers.muon import Muon
from hvd_async.store.optimizers.protocol import Optimizer
from hvd_async.store.optimizers.torch_class import TorchOptimizer
from hvd_async.vectors.vector_map import VectorMap

_KINDS: Mapping[str, Callable[[OptimizerConfig], Optimizer]] = {
    "sgd": Sgd,
    "adam": Adam,
    "adamw": AdamW,
    "nadam": NAdam,
    "lion": Lion,
    "adagrad": Adagrad,
    "muon": Muon,
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


def make_optimizers(config: OptimizerConfig, vector_map: VectorMap) -> list[tuple[slice, Optimizer]]:
    """Return the elements of each group that is not empty, in the order of `vector_map`, with the group's optimizer."""
    made: list[tuple[slice, Optimizer]] = []
    for range_, each in zip(vector_map.groups, config.of_groups(), strict=True):
        if range_.start < range_.stop:
            made.append(
                (range_, Muon(each, vector_map.within(range_).matrices) if each.kind == "muon" else make_optimizer(each))
            )
    return made


def state_names(config: OptimizerConfig) -> list[str]:
    """Return the names of a shard's vectors beside the parameters: all that a checkpoint needs, and `pending_sum`."""
    average = ["average"] if config.average_decay else []
    return [*make_optimizer(config).state_names, *average, "pending_sum"]


def can_redo(config: OptimizerConfig) -> bool:
    """Whether another process can complete a step in which the store's process died."""
    return all(make_optimizer(each).can_redo for each in config.of_groups())
