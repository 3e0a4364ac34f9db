"""The pace of validation in versions, where the configuration gives it in epochs."""

from __future__ import annotations

import bisect

from hvd_async.config import RunConfig
from hvd_async.errors import ConfigError
from hvd_async.store.schedule import versions_made
from hvd_async.tasks.task import Task

_MOST_BATCHES = 2**40


def in_versions(config: RunConfig, task: Task, num_workers: int) -> RunConfig:
    """Return `config` with `validation.every` in place of `every_epochs`, if it has that.

    Raises `ConfigError` for data without epochs, such as a stream.
    """
    epochs = config.validation.every_epochs
    if epochs is None:
        return config
    batches = _batches_of_epoch(task)
    if batches is None:
        raise ConfigError(
            f"validation.every_epochs: got {epochs:g}, but the data have no epochs; expected validation.every, in versions"
        )
    every = versions_made(config.strategy, max(1, round(epochs * batches)), num_workers)
    validation = config.validation.model_copy(update={"every": every, "every_epochs": None})
    return config.model_copy(update={"validation": validation})


def pace_text(config: RunConfig, resolved: RunConfig) -> list[str]:
    """Return a line on what `in_versions` has made of `config`; none if nothing."""
    epochs = config.validation.every_epochs
    words = "epoch" if epochs == 1 else "epochs"
    return [] if epochs is None else [f"validation every {resolved.validation.every:,} versions, for {epochs:g} {words}"]


def _batches_of_epoch(task: Task) -> int | None:
    """Return the number of batches in the first epoch; None if it has no end."""
    end = 1
    while task.epoch_of(end) == 0:
        end *= 2
        if end > _MOST_BATCHES:
            return None
    return bisect.bisect_left(range(end + 1), 1, key=task.epoch_of)
