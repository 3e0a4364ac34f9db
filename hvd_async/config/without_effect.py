"""Keys that a configuration gives although they have no effect with its other settings.

They are no error: the variants of a suite, and `--set`, change settings such as `strategy.kind` over one file that all share.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from hvd_async.config.run import RunConfig
from hvd_async.config.section import Section
from hvd_async.config.yaml import dump_yaml_line


@dataclass(frozen=True)
class Setting:
    """A demand on another key: `is_met` tells whether a value of `key`, a dotted path, meets it."""

    key: str
    is_met: Callable[[Any], bool]


Demand: TypeAlias = tuple[Setting, ...]
"""Settings of which one must be met."""


def _demand(key: str, *values: Any) -> Demand:
    return (Setting(key, lambda value: value in values),)


def _demand_other(key: str, *values: Any) -> Demand:
    return (Setting(key, lambda value: value not in values),)


_ASYNC = _demand("strategy.kind", "async")
_MOMENTS = _demand("optimizer.kind", "adam", "adamw", "nadam", "lion", "muon")
_EPSILON = _demand("optimizer.kind", "adam", "adamw", "nadam", "adagrad", "muon")
_TRANSFORMER = _demand("task.model.kind", "transformer")
_NODES = _demand_other("simulation.workers_per_node", None)
_OWN_PIECES = tuple(
    _demand(f"task.{key}", None)
    for key in ("vocabulary.file", "vocabulary.source_file", "vocabulary.target_file", "init_from")
)

DEMANDS: Mapping[str, tuple[Demand, ...]] = {
    "strategy.arrivals_per_update": (_ASYNC,),
    "strategy.lockstep": (_ASYNC,),
    "emulation.seconds_per_micro_batch": (_ASYNC, _demand_other("strategy.micro_batches", 1)),
    "strategy.synchronous_versions": (_ASYNC, _demand("strategy.lockstep", False)),
    "strategy.max_staleness": (_ASYNC,),
    "strategy.on_stale": (_ASYNC, _demand_other("strategy.max_staleness", None)),
    "strategy.staleness_policy": (_ASYNC,),
    "strategy.delay_compensation": (_ASYNC, _demand("strategy.staleness_policy", "delay_compensation")),
    "strategy.provisional": (
        _ASYNC,
        _demand("strategy.lockstep", False),
        _demand_other("strategy.arrivals_per_update", 1),
    ),
    "strategy.micro_batches": (
        _ASYNC,
        _demand("strategy.lockstep", False),
        _demand_other("task.kind", "script"),  # whose loop divides its batches itself
    ),
    "strategy.pending": (_ASYNC,),
    "strategy.on_worker_failure": (_ASYNC,),
    "strategy.min_workers": (_ASYNC, _demand("strategy.on_worker_failure", "continue")),
    "strategy.max_workers": (_ASYNC, _demand("push.node_sum", False)),
    "strategy.joins_from": (_ASYNC, _demand("push.node_sum", False)),
    "strategy.placement": (_ASYNC,),
    "strategy.store_timeout_seconds": (_ASYNC,),
    "strategy.worker_timeout_seconds": (_demand_other("strategy.kind", "single"),),
    "store.recoverable": (_ASYNC, _demand_other("optimizer.kind", "torch")),  # the first pattern that matches counts
    "store.*": (_ASYNC,),
    "push.*": (_ASYNC,),
    "optimizer.betas": (_MOMENTS,),
    "optimizer.groups.*.betas": (_MOMENTS,),
    "optimizer.epsilon": (_EPSILON,),
    "optimizer.groups.*.epsilon": (_EPSILON,),
    "optimizer.decoupled_weight_decay": (
        (
            *_demand_other("optimizer.weight_decay", 0.0),
            Setting("optimizer.groups", lambda groups: any(group.weight_decay for group in groups)),
        ),
    ),
    "optimizer.schedule.unit": (
        (*_demand_other("optimizer.schedule.kind", "constant"), *_demand_other("optimizer.schedule.warmup", 0)),
    ),
    "task.metric_sentences": (_demand_other("task.metrics", ()),),
    "task.decoding.validation_beam": ((*_demand_other("task.metrics", ()), *_demand_other("task.samples", None, 0)),),
    **{
        f"task.vocabulary.{key}": _OWN_PIECES
        for key in ("size", "kind", "character_coverage", "byte_fallback", "normalization", "symbols")
    },
    **{f"task.model.{key}": (_TRANSFORMER,) for key in ("feed_forward", "heads", "attention_dropout", "norm")},
    "training.allow_sharing": (_demand_other("training.device", "cpu"),),
    "simulation.store_node_trains": (_NODES,),
    "simulation.network.*": (_NODES,),
    "simulation.arrival_seconds": (_ASYNC,),
    "simulation.allreduce": (_demand("strategy.kind", "ddp", "horovod"),),
}
"""Patterns of keys that have an effect only with other settings, and the demands, all of which must be met for an effect."""

ALWAYS: frozenset[str] = frozenset(
    {
        *(f"strategy.{key}" for key in ("kind", "reduction", "hang_timeout_seconds", "stop_timeout_seconds")),
        *(f"strategy.{key}" for key in ("delay", "delay_pattern")),  # refused where they have no effect
        *(f"optimizer.{key}" for key in ("kind", "learning_rate", "weight_decay", "clip_norm", "average_decay")),
        *(f"optimizer.schedule.{key}" for key in ("kind", "warmup", "total", "final")),
        *(f"optimizer.groups.*.{key}" for key in ("match", "learning_rate", "weight_decay")),
        # The check of the section refuses these with another kind of optimizer.
        *(f"optimizer.{key}" for key in ("momentum", "nesterov", "momentum_decay", "rate_decay", "initial_accumulator")),
        *(f"optimizer.muon_{key}" for key in ("momentum", "iterations", "scale", "except")),
        *("optimizer.torch_class", "optimizer.settings"),
        *(f"optimizer.groups.*.{key}" for key in ("momentum", "nesterov", "momentum_decay", "rate_decay")),
        *(f"optimizer.groups.*.{key}" for key in ("initial_accumulator", "decoupled_weight_decay", "settings")),
        "optimizer.steps_before",
    }
)
"""Keys of `strategy`, `push`, `store` and `optimizer` that have an effect whenever they are accepted."""


def keys_without_effect(config: RunConfig) -> list[str]:
    """Return a line for each key that `config` gives and that has no effect with its other settings.

    A key that is given with its default value is left out: a saved configuration names every key. So are the keys of the
    optimizer of a script, which are described by the optimizer that the script passes.
    """
    found = []
    for key in _given(config, ""):
        if config.task.kind == "script" and key.startswith("optimizer."):
            continue
        failed = next((demand for demand in demands_of(key) if not any(_is_met(config, one) for one in demand)), None)
        if failed is not None:
            found.append(f"{key}: has no effect {' and '.join(_in_words(config, one) for one in failed)}")
    return found


def demands_of(key: str) -> tuple[Demand, ...]:
    """Return the demands of `key`, a dotted path in which a number stands for an entry of a list; none if it has an effect
    whenever it is accepted."""
    return next((demands for pattern, demands in DEMANDS.items() if fnmatch.fnmatchcase(key, pattern)), ())


def _given(section: Section, prefix: str) -> Iterator[str]:
    """Yield the dotted keys below `section` that were given with another value than the default, in the order of the page."""
    for name, field in type(section).model_fields.items():
        if name not in section.model_fields_set:
            continue
        value = getattr(section, name)
        entries = {str(index): entry for index, entry in enumerate(value)} if isinstance(value, tuple) else {"": value}
        inner = {index: entry for index, entry in entries.items() if isinstance(entry, Section)}
        for index, entry in inner.items():
            yield from _given(entry, f"{prefix}{name}.{index}." if index else f"{prefix}{name}.")
        # `provisional` has no value where it has no effect; `StrategyConfig` keeps whether it was given.
        if isinstance(value, Section):
            continue
        if value != field.default or prefix + name == "strategy.provisional":
            yield prefix + name


def _value(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _is_met(config: RunConfig, setting: Setting) -> bool:
    return setting.is_met(_value(config, setting.key))


def _in_words(config: RunConfig, setting: Setting) -> str:
    value = _value(config, setting.key)
    return f"without {setting.key}" if value is None or value == () else f"with {setting.key}: {dump_yaml_line(value)}"
