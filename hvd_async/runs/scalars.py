"""Curves over versions for TensorBoard. Their failure does not end a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from hvd_async.errors import SetupError
from hvd_async.runs.evaluations import EvaluationResult
from hvd_async.runs.recorder_context import RunContext, TrainingClock
from hvd_async.runs.recorder_part import RunPart
from hvd_async.runs.totals import Totals
from hvd_async.store.arrival import Update
from hvd_async.system.extras import require

_EVERY_SECONDS = 1.0


class Scalars(RunPart):
    """Writes numbers over versions; a context manager. After a failure, which is reported once, nothing more is written."""

    def __init__(self, run: RunContext, clock: TrainingClock, totals: Totals) -> None:
        """Open no file yet. `totals` must get each event before this part."""
        self._folder = run.folder.tensorboard if run.config.training.tensorboard else None
        self._say = run.progress.say
        self._clock = clock
        self._totals = totals
        self._purge_from: int | None = None
        self._writer: Any = None
        self._written_at = 0.0

    def forget_from(self, version: int) -> None:
        """Drop points of an earlier process from `version` on, since these versions are made again. Called before
        entering."""
        self._purge_from = version

    def __enter__(self) -> Scalars:
        """Open the file."""
        if self._folder is not None:
            try:
                require("tensorboard")
            except SetupError as error:
                self._say(f"{error}; continuing without TensorBoard scalars")
                return self
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._do(lambda: setattr(self, "_writer", SummaryWriter(str(self._folder), purge_step=self._purge_from)))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Write the buffer."""
        if self._writer is not None:
            self._do(self._writer.close)

    def updated(self, update: Update) -> None:
        """Add a point to the curves of training, at most once a second."""
        now = time.monotonic()
        if now - self._written_at < _EVERY_SECONDS:
            return
        self._written_at = now
        staleness = sum(map(update.staleness, update.arrivals)) / len(update.arrivals)
        weight = self._totals.metrics.weight
        for name, value in (
            ("training/loss", update.loss),
            ("training/learning_rate", update.learning_rate),
            ("training/gradient_norm", update.gradient_norm),
            ("training/staleness", staleness),
            ("training/weight", weight),
            ("training/weight_per_second", weight / max(1e-9, self._clock.seconds)),
        ):
            self._add(name, value, update.version)

    def evaluated(self, result: EvaluationResult) -> None:
        """Add a point to the curves of validation."""
        for name, score in result.scores.items():
            self._add(f"validation/{name}", score, result.version)

    def _add(self, name: str, value: float, version: int) -> None:
        if self._writer is not None:
            self._do(lambda: self._writer.add_scalar(name, value, version))

    def _do(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self._writer = None
            self._say(
                f"{self._folder}: cannot be written: {error.strerror or error}; continuing without TensorBoard scalars"
            )
