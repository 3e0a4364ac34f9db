"""Rules for resuming a run: with the same computation on the same data, possibly for longer. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hvd_async.config import BOUNDS, RunConfig, TranslationConfig, ValidationConfig, dump_yaml_line
from hvd_async.errors import ConfigError
from hvd_async.store.ledger import BatchLedger

# Settings that may differ when a run is resumed: its length, place, observation and patience, but not the computation.
_OF_LIVENESS = (
    *("on_worker_failure", "min_workers", "max_workers", "joins_from"),
    *(f"{name}_timeout_seconds" for name in ("store", "worker", "hang", "stop")),
)
# Not the score that tells which version is the best: parameters of earlier versions are gone, of which one may be it.
_OF_OBSERVATION = [key for key in ValidationConfig.model_fields if key != "score"]
_MAY_CHANGE = {
    *("store", "output", "emulation", "simulation"),
    *(f"strategy.{key}" for key in _OF_LIVENESS),
    *(f"validation.{key}" for key in _OF_OBSERVATION),
}
_MUST_STAY_IN_TRAINING = {"precision"}


@dataclass(frozen=True)
class Supply:
    """Training data of a resumed run: their fingerprint, and the number of batches in the whole run if the data bound it."""

    fingerprint: str
    num_batches: int | None


def changed_keys(before: RunConfig, config: RunConfig) -> list[tuple[str, Any, Any]]:
    """Return each key that must not change but does, with its value before and in `config`."""
    may_change = _MAY_CHANGE | {f"task.{key}" for key in config.task.may_change}
    return _changed(_comparable(before, config), _comparable(config, before), may_change)


def needs_more_training(config: RunConfig, saved: Mapping[str, Any], supply: Supply) -> bool:
    """Whether `config` requires training beyond the checkpoint `saved`."""
    training = config.training
    if training.updates is not None:
        return training.updates > int(saved["store"]["version"])
    if training.seconds is not None:
        return training.seconds > float(saved["recorder"]["seconds"])
    return supply.num_batches is not None and BatchLedger(**saved["store"]["ledger"]).num_missing(supply.num_batches) > 0


def is_as_long(before: RunConfig, config: RunConfig) -> bool:
    """Whether both configurations describe a run of the same length with the same evaluations."""
    bounds = all(getattr(before.training, bound) == getattr(config.training, bound) for bound in BOUNDS)
    return bounds and before.validation == config.validation


def check_goes_further(before: RunConfig, config: RunConfig, saved: Mapping[str, Any], supply: Supply, flag: str) -> None:
    """Raise `ConfigError` if a run of configuration `before`, resumed with `config` from the checkpoint `saved`, would use
    other data, end before the checkpoint, or learn nothing after it. `flag` is named in messages."""
    if saved["data_fingerprint"] != supply.fingerprint:
        if config.task.kind == "script":
            raise ConfigError(
                f"{flag}: got data, shapes of parameters or frozen parameters that differ from the run's; restore them (seed"
                " torch before the model is made), or start another run"
            )
        model = (
            "" if not isinstance(config.task, TranslationConfig) or config.task.init_from is None else config.task.init_from
        )
        begins = f", or a model to begin with (task.init_from: {model}) that differs from the run's" if model else ""
        raise ConfigError(
            f"{flag}: task: got data that differ from the run's training data ({_where(config)}){begins}; restore them, or"
            " start another run"
        )
    version, weight, seconds = saved["store"]["version"], saved["store"]["weight"], saved["recorder"]["seconds"]
    used, training, got = _num_used(saved["store"]["ledger"]), config.training, ""
    if training.updates is not None and training.updates < version:
        got = f"updates: got {training.updates}, expected {version} or more"
    elif training.seconds is not None and training.seconds < seconds and training.seconds != before.training.seconds:
        got = f"seconds: got {training.seconds:g}, expected {seconds:.1f} or more"
    elif supply.num_batches is not None and supply.num_batches < used:
        bound = "weight" if training.epochs is None else "epochs"
        asked = f"{getattr(training, bound)}, which is {supply.num_batches} batches"
        got = f"{bound}: got {asked}, expected {used} batches or more"
    if got:
        raise ConfigError(f"{flag}: training.{got}, which the run has reached; or start another run")
    schedule = config.optimizer.schedule
    position = version if schedule.unit == "versions" else weight
    if (
        schedule.end_of_learning is not None
        and position >= schedule.end_of_learning
        and needs_more_training(config, saved, supply)
    ):
        raise ConfigError(
            f"{flag}: optimizer.schedule.total: got {schedule.total} {schedule.unit}, which the run has reached, expected more;"
            " the learning rate is 0 from there on, so nothing would be learned; start another run"
        )


def _where(config: RunConfig) -> str:
    """Return where the data come from, as far as the configuration says it."""
    task = config.task
    return task.data.folder if isinstance(task, TranslationConfig) else dump_yaml_line(task.model_dump())


def _num_used(ledger: Mapping[str, Any]) -> int:
    """Return the number of batches up to the last one that arrived."""
    used: int = max([ledger["watermark"], *(batch + 1 for batch in ledger["above"])])
    return used


def _comparable(config: RunConfig, other: RunConfig) -> dict[str, Any]:
    """Return `config` as plain data, without settings that differ only because `other` has another kind of strategy."""
    fields = config.model_dump()
    if config.strategy.kind != other.strategy.kind:
        del fields["strategy"]["provisional"]
    return fields


def _changed(
    before: dict[str, Any], after: dict[str, Any], may_change: Collection[str], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    changed = []
    for key in {**before, **after}:  # other keys if the task is another
        old, new, path = before.get(key), after.get(key), f"{prefix}{key}"
        if path in may_change or (prefix == "training." and key not in _MUST_STAY_IN_TRAINING):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changed += _changed(dict(sorted(old.items())), new, may_change, f"{path}.")
        elif old != new:
            changed.append((path, old, new))
    return changed
