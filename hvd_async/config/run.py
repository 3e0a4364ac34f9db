"""The configuration of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar, get_args

import pydantic
from pydantic import Field

from hvd_async.config.emulation import EmulationConfig
from hvd_async.config.optimizer import OptimizerConfig
from hvd_async.config.section import PathText, Section, Seed
from hvd_async.config.simulation import SimulationConfig
from hvd_async.config.strategy import PushConfig, StoreConfig, StrategyConfig
from hvd_async.config.task import TaskConfig, TextScore, TranslationConfig
from hvd_async.config.training import BOUNDS, TrainingConfig, ValidationConfig
from hvd_async.errors import ConfigError


def _is_inside(place: str, folder: str) -> bool:
    """Whether `place` is `folder`, or lies below it."""
    inner, outer = (os.path.realpath(path) for path in (place, folder))
    return os.path.commonpath([inner, outer]) == outer


class RunConfig(Section):
    """A training run."""

    renamed: ClassVar[Mapping[str, str]] = {
        name: f"task.{name}" for name in ("data", "vocabulary", "model", "batching", "decoding")
    }

    output: PathText = Field(description="Folder of the run: configuration, event log, snapshots, checkpoints, models.")
    seed: Seed = Field(1, description="Decides initial parameters, order of batches, dropout.")
    task: TaskConfig = Field(description="What is trained.")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="The update.")
    strategy: StrategyConfig = Field(StrategyConfig(), description="Single, synchronous or asynchronous training.")
    store: StoreConfig = Field(StoreConfig(), description="Where the parameter store lies.")
    push: PushConfig = Field(PushConfig(), description="How gradients travel to the store.")
    training: TrainingConfig = Field(
        description="Length, device, logging and checkpoints.", examples=["`training: {epochs: 10}`"]
    )
    validation: ValidationConfig = Field(ValidationConfig(), description="Measurements during the run.")
    emulation: EmulationConfig = Field(EmulationConfig(), description="How long steps last, for experiments.")
    simulation: SimulationConfig = Field(SimulationConfig(), description="A cluster to simulate.")

    @property
    def translation(self) -> TranslationConfig:
        """The keys of the task of translation. Raises `ConfigError` if the task is another."""
        if not isinstance(self.task, TranslationConfig):
            raise ConfigError(f"task.kind: got {self.task.kind}, expected translation, which alone can do this")
        return self.task

    @pydantic.model_validator(mode="after")
    def _schedule_ends(self) -> RunConfig:
        """Resolve the default of `optimizer.schedule.total`, so that a saved configuration shows it and nothing derives it again.

        A run that is resumed for longer would otherwise have another schedule than the one with which it began.
        """
        schedule = self.optimizer.schedule
        if schedule.kind != "cosine" or schedule.total is not None:
            return self
        bound = "updates" if schedule.unit == "versions" else "weight"
        length = getattr(self.training, bound)
        if length is None:
            given = next(f"training.{name}" for name in BOUNDS if getattr(self.training, name) is not None)
            raise ValueError(
                f"optimizer.schedule.total: got none in a run bounded by {given}, expected the {schedule.unit} at which the"
                f" cosine ends, or training.{bound}; with unit {schedule.unit} no other bound says how long the run is"
            )
        if length <= schedule.warmup:
            raise ValueError(
                f"training.{bound}: got {length}, expected more than optimizer.schedule.warmup ({schedule.warmup}): the cosine"
                " begins after it"
            )
        optimizer = self.optimizer.model_copy(update={"schedule": schedule.model_copy(update={"total": length})})
        object.__setattr__(self, "optimizer", optimizer)  # the model is frozen from here on
        return self

    @pydantic.model_validator(mode="after")
    def _schedule_lasts(self) -> RunConfig:
        schedule, bound = self.optimizer.schedule, "updates" if self.optimizer.schedule.unit == "versions" else "weight"
        length = getattr(self.training, bound)
        if schedule.end_of_learning is not None and length is not None and length > schedule.end_of_learning:
            raise ValueError(
                f"training.{bound}: got {length}, expected at most optimizer.schedule.total"
                f" ({schedule.total}); beyond it the rate is 0 and nothing is learned"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _score_is_measured(self) -> RunConfig:
        measured, score = self.task.measured, self.validation.score
        if measured is not None and score not in measured:
            hint = f"; task.metrics: [{score}] measures it" if score in get_args(TextScore) else ""
            raise ValueError(f"validation.score: got {score}, expected {' or '.join(measured)}{hint}")
        return self

    @pydantic.model_validator(mode="after")
    def _what_training_begins_with_lies_elsewhere(self) -> RunConfig:
        if not isinstance(self.task, TranslationConfig):
            return self
        vocabulary = self.task.vocabulary
        places = {f"vocabulary.{key}": getattr(vocabulary, key) for key in ("file", "source_file", "target_file")}
        for key, place in {"init_from": self.task.init_from, **places}.items():
            if place is not None and _is_inside(place, self.output):
                raise ValueError(
                    f"task.{key}: got {place}, which lies in the run's own output {self.output} and would be replaced;"
                    " expected a place outside of it: set another output"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _steps_before_are_of_a_script(self) -> RunConfig:
        if self.optimizer.steps_before and self.task.kind != "script":
            raise ValueError(
                f"optimizer.steps_before: got {self.optimizer.steps_before}, expected 0: only the optimizer of a script can bring"
                " a state"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _micro_batches_fit(self) -> RunConfig:
        number = self.strategy.num_micro_batches
        if number == 1 or self.task.kind == "script":  # whose loop does not heed it
            return self
        if key := self.push.pacing_key:
            raise ValueError(
                f"strategy.micro_batches: got {number} with push.{key}, expected 1 or push.{key} false: with push.{key} a"
                " worker pulls at other times"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _overlap_fits(self) -> RunConfig:
        strategy = self.strategy
        if not self.push.overlap or not strategy.is_async:
            return self
        if strategy.lockstep:
            raise ValueError(
                "push.overlap: got true with strategy.lockstep, expected false; in lock-step a worker waits for its update"
            )
        if strategy.max_staleness == 0:
            raise ValueError(
                "push.overlap: got true with strategy.max_staleness 0, expected max_staleness >= 1 or none; overlapped"
                " gradients are at least one version stale"
            )
        return self
