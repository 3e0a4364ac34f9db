"""Progress reports of a run during training."""

from __future__ import annotations

from collections.abc import Sequence

from hvd_async.runs.evaluations import EvaluationResult
from hvd_async.runs.recorder_context import RunContext, TrainingClock
from hvd_async.runs.recorder_part import RunPart
from hvd_async.runs.totals import Totals
from hvd_async.store.arrival import Update
from hvd_async.tasks.metric import describe


class Reporter(RunPart):
    """Shows updates and evaluations through `Progress`, and warns when the learning rate schedule has ended."""

    def __init__(self, run: RunContext, clock: TrainingClock, totals: Totals) -> None:
        """All arguments stay the caller's. `totals` must get each event before this part."""
        self._progress = run.progress
        self._metrics = run.task.metrics
        self._clock = clock
        self._totals = totals
        self._num_idle = 0

    def updated(self, update: Update) -> None:
        """Show the update if a line is due."""
        self._num_idle += update.learning_rate == 0.0
        if self._num_idle == 2:  # not 1: the last version of a complete schedule has rate 0
            self._progress.say(
                f"version {update.version}: the learning rate is 0 from here on; see optimizer.schedule.total"
            )
        self._progress.update(update, self._totals.metrics, self._clock.seconds)

    def lost(self, worker: int, reason: str, returned: Sequence[int]) -> None:
        """Say who was lost, and what others compute in its place."""
        self._progress.say(f"{reason}; the run goes on without it{_given(returned)}")

    def joined(self, worker: int) -> None:
        """Say who joined."""
        self._progress.say(f"worker {worker} has joined")

    def left(self, worker: int, returned: Sequence[int]) -> None:
        """Say who left, and what others compute in its place."""
        self._progress.say(f"worker {worker} has left{_given(returned)}")

    def evaluated(self, result: EvaluationResult) -> None:
        """Show the result."""
        self._progress.evaluated(result.version, describe(result.scores, self._metrics))


def _given(batches: Sequence[int]) -> str:
    return f"; batch {', '.join(map(str, batches))} given to others" if batches else ""
