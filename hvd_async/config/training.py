"""The sections `training` and `validation`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field

from hvd_async.config.section import Device, EachOnce, Natural, Positive, PositiveAmount, PositiveSeconds, Section, Threads

# Every rank plans each epoch before training begins.
MOST_EPOCHS = 10_000
# The keys of `training` that bound a run; exactly one is set.
BOUNDS = ("epochs", "weight", "updates", "seconds")


class TrainingConfig(Section):
    """Length, device, logging and checkpoints. Exactly one of `epochs`, `weight`, `updates` and `seconds` bounds the run.


    The weight of a batch is the number of items over which its loss is summed: target tokens in translation.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "digest_every": "hash_every",
        "tokens": "weight",
        "label_smoothing": "task.label_smoothing",
    }

    epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS)] | None = Field(None, description="Passes over the training data.")
    weight: Positive | None = Field(None, description="Total weight: the run takes whole batches until it reaches this.")
    updates: Positive | None = Field(None, description="Updates: the run ends at this version.")
    seconds: PositiveSeconds | None = Field(None, description="Seconds of training; the run ends at most two updates later.")
    device: Device = Field(
        "auto", description="`auto` (a GPU per worker if there are any), `cpu`, `cuda`, or `cuda:<index>` for all workers."
    )
    allow_sharing: bool = Field(False, description="Whether several workers may share a GPU.")
    threads: Threads | None = Field(
        None, description="CPU threads per rank for arithmetic. Default: the node's cores divided among its ranks."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="`bfloat16`: autocast in forward and backward pass; parameters and updates stay float32."
    )
    log_every_seconds: PositiveSeconds = Field(
        60.0, description="Shortest time between lines of progress if the output is not a terminal."
    )
    checkpoint_every: Natural = Field(
        0,
        description="Versions between checkpoints; if the disk is slower, the next version after the previous write"
        " is saved. 0: only by `checkpoint_minutes`, at the end, and when the run is stopped or a worker"
        " fails.",
    )
    checkpoint_minutes: Annotated[float, Field(ge=0.0, le=1e9)] = Field(
        10.0,
        description="Minutes after which the next version is saved as a checkpoint, if none was saved in the"
        " meantime; 0: never.",
    )
    keep_checkpoints: Positive = Field(1, description="Number of latest checkpoints to keep.")
    hash_every: Natural = Field(
        100,
        description="Versions between hashes of the parameters in the event log, which `hvd-async replay` compares;"
        " 0: no hashes, not even of the first and the last version.",
    )
    diverged_after: Positive = Field(
        100,
        description="Number of consecutive gradients that are not finite after which the run counts as diverged and ends.",
    )
    trackers: Annotated[tuple[Literal["wandb", "mlflow"], ...], Field(strict=False), EachOnce] = Field(
        (),
        description="Send the curves and the configuration to Weights & Biases (`wandb`) or MLflow (`mlflow`) as well. Their own"
        " variables say where: `WANDB_PROJECT`, `WANDB_MODE`, `MLFLOW_TRACKING_URI` (required), `MLFLOW_EXPERIMENT_NAME`.",
    )
    tensorboard: bool = Field(
        True, description="Write TensorBoard scalars to `<output>/tensorboard`, if the package tensorboard is installed."
    )

    @pydantic.model_validator(mode="after")
    def _one_bound(self) -> TrainingConfig:
        bounds = {name: getattr(self, name) for name in BOUNDS if getattr(self, name) is not None}
        if len(bounds) != 1:
            got = " and ".join(bounds) or "none of them"
            hint = f"; {next(iter(bounds))}: null takes one away" if bounds else ""
            raise ValueError(f"got {got}, expected exactly one of {', '.join(BOUNDS)}{hint}")
        return self


class ValidationConfig(Section):
    """Measurements of the model, made on snapshots, each of exactly one version."""

    renamed: ClassVar[Mapping[str, str]] = {
        "every_tokens": "every_weight",
        "bleu": "task.metrics: [bleu]",
        "bleu_sentences": "task.metric_sentences",
    }

    every: Positive | None = Field(
        None, description="Versions between snapshots to validate. Default: only the last version."
    )
    every_weight: Positive | None = Field(
        None,
        description="Weight between snapshots to validate, instead of `every`: the first version after each"
        " multiple. Runs with updates of different sizes are then measured alike. Requires `when: after`.",
    )
    every_epochs: PositiveAmount | None = Field(
        None,
        description="Epochs between snapshots to validate, instead of `every`: as many versions as their batches make while all"
        " workers take part, rounded up. The run's own `config.yaml` has this number as `every`.",
    )
    when: Literal["during", "after"] = Field(
        "during",
        description="`during`: the first worker that finishes a step takes the evaluation, and the store continues;"
        " `after`: when training has ended, so that its clock measures training alone.",
    )
    score: str = Field(
        "loss",
        description="The score by which `models/best` is chosen and `patience` counts: `loss`, or another that the task measures,"
        " such as `bleu`. The task says whether higher or lower is better.",
    )
    patience: Positive | None = Field(
        None, description="Stop after this many validations without a better `score`; requires `when: during`."
    )

    @pydantic.model_validator(mode="after")
    def _patience_fits(self) -> ValidationConfig:
        if self.patience is not None and self.every_during is None and (self.when != "during" or self.every_epochs is None):
            raise ValueError("patience: expected when: during, a value for every or every_epochs, and every_weight: null")
        return self

    @pydantic.model_validator(mode="after")
    def _every_epochs_fits(self) -> ValidationConfig:
        if self.every_epochs is not None and (self.every is not None or self.every_weight is not None):
            raise ValueError("every_epochs: expected every: null and every_weight: null; or every_epochs: null")
        return self

    @pydantic.model_validator(mode="after")
    def _every_weight_fits(self) -> ValidationConfig:
        if self.every_weight is not None and (self.when != "after" or self.every is not None):
            raise ValueError("every_weight: expected when: after and every: null; or every_weight: null")
        return self

    @property
    def every_during(self) -> int | None:
        """Versions between evaluations during training; None if there are none."""
        return self.every if self.when == "during" else None

    def is_due_during(self, version: int) -> bool:
        """Whether `version` is to be evaluated during training."""
        return bool(self.every_during) and version % (self.every_during or 1) == 0

    def is_due(self, version: int, before: float, weight: float) -> bool:
        """Whether to validate `version`, whose update raised the total weight from `before` to `weight`."""
        if self.every_weight is not None:
            return weight // self.every_weight > before // self.every_weight
        return self.every is not None and version % self.every == 0
