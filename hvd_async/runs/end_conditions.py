"""Conditions that end a run before its data end: time or patience is exhausted, or the run has diverged."""

from __future__ import annotations

import math

from hvd_async.runs.evaluations import EvaluationHistory
from hvd_async.runs.recorder_context import RunContext, TrainingClock
from hvd_async.runs.recorder_part import RunPart
from hvd_async.runs.totals import Totals
from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.wire.stop import StopNotice

# Refusals that indicate divergence.
_NOT_FINITE = (Refusal.NOT_FINITE, Refusal.SUM_NOT_FINITE)


class Limits(RunPart):
    """Decides whether a run is to end, and reports how it ended."""

    def __init__(self, run: RunContext, clock: TrainingClock, history: EvaluationHistory, totals: Totals) -> None:
        """All arguments stay the caller's."""
        self._config = run.config
        self._clock = clock
        self._history = history
        self._totals = totals
        self._num_not_finite = 0  # in a row
        self._has_diverged = False

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """Count consecutive gradients that are not finite."""
        if refusal in _NOT_FINITE:
            self._num_not_finite += 1
            self._has_diverged |= self._num_not_finite >= self._config.training.diverged_after

    def updated(self, update: Update) -> None:
        """Reset the count of gradients that are not finite."""
        self._num_not_finite = 0

    def is_finished(self) -> bool:
        """Whether patience is exhausted, time is over, or too many consecutive gradients were not finite."""
        limit = self._config.training.seconds
        return (limit is not None and self._clock.seconds >= limit) or self._has_diverged or self.is_out_of_patience()

    def is_out_of_patience(self) -> bool:
        """Whether too many evaluations have passed without a better score."""
        patience = self._config.validation.patience
        return patience is not None and self._history.num_without_progress() >= patience

    def status_of(self, notice: StopNotice | None) -> str:
        """Return the summary's word for how the run ended; `notice` is the stop notice, if any."""
        last = self._history.last
        if notice is not None and not notice.is_end:
            return "stopped"
        has_learned_nothing = self._num_not_finite > 0 and not self._totals.metrics.updates
        if self._has_diverged or has_learned_nothing or (last is not None and not math.isfinite(last.loss)):
            return "diverged"
        return "finished early" if self.is_out_of_patience() else "finished"
