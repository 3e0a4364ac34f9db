"""Curves over versions, and samples, for TensorBoard and trackers. Their failure does not end a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from hvd_async.config import leaves
from hvd_async.errors import SetupError
from hvd_async.runs.curve_sinks import CurveSink, TensorBoard
from hvd_async.runs.evaluations import EvaluationResult
from hvd_async.runs.recorder_context import RunContext, TrainingClock
from hvd_async.runs.recorder_part import RunPart
from hvd_async.runs.samples import as_markdown, read_samples
from hvd_async.runs.totals import Totals
from hvd_async.runs.tracker_process import TrackerProcess
from hvd_async.runs.trackers import TrackedRun
from hvd_async.store.arrival import Update
from hvd_async.system.extras import require
from hvd_async.system.printable import printable

_EVERY_SECONDS = 1.0
# How long the end of a run waits for its trackers, all together; and that of a run that was stopped, which may be killed soon.
_LAST_SECONDS, _STOPPED_SECONDS = 60.0, 5.0


class Scalars(RunPart):
    """Passes numbers over versions to sinks; a context manager. A sink that fails is reported once, and gets nothing more."""

    def __init__(self, run: RunContext, clock: TrainingClock, totals: Totals) -> None:
        """Open nothing yet. `totals` must get each event before this part."""
        self._run = run
        self._say = run.progress.say
        self._clock = clock
        self._totals = totals
        self._purge_from: int | None = None
        self._sinks: list[CurveSink] = []
        self._last_seconds = _LAST_SECONDS
        self._written_at = 0.0

    def forget_from(self, version: int) -> None:
        """Drop points of an earlier process from `version` on, since these versions are made again. Called before
        entering."""
        self._purge_from = version

    def __enter__(self) -> Scalars:
        """Open the sinks that the configuration names."""
        training, folder = self._run.config.training, self._run.folder
        wanted: dict[str, CurveSink] = {}
        if training.tensorboard:
            wanted["tensorboard"] = TensorBoard(folder.tensorboard, self._purge_from)
        name, settings = folder.root.resolve().name, leaves(self._run.config)
        for tracker in training.trackers:
            wanted[tracker] = TrackerProcess(tracker, TrackedRun(name, settings, folder.tracker(tracker)))
        for extra, sink in wanted.items():
            try:
                require(extra)
            except SetupError as error:
                self._say(f"{error}; continuing without {sink.title}")
                continue
            self._sinks.append(sink)
            self._do(sink, lambda sink: sink.open())
        return self

    def is_stopped(self) -> None:
        """Note that the run was stopped, so that its end waits for trackers for a moment only."""
        self._last_seconds = _STOPPED_SECONDS

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Have the sinks write what is left."""
        self._each(lambda sink: sink.finish(is_failed=kind is not None))
        until = time.monotonic() + self._last_seconds
        self._each(lambda sink: sink.wait(until))

    def updated(self, update: Update) -> None:
        """Add a point to the curves of training, at most once a second."""
        now = time.monotonic()
        if now - self._written_at < _EVERY_SECONDS:
            return
        self._written_at = now
        weight = self._totals.metrics.weight
        points = {
            "training/loss": update.loss,
            "training/learning_rate": update.learning_rate,
            "training/gradient_norm": update.gradient_norm,
            "training/staleness": sum(map(update.staleness, update.arrivals)) / len(update.arrivals),
            "training/weight": weight,
            "training/weight_per_second": weight / max(1e-9, self._clock.seconds),
        }
        self._each(lambda sink: sink.add(points, update.version))

    def evaluated(self, result: EvaluationResult) -> None:
        """Add a point to the curves of validation, and the samples of the version, if there are any."""
        scores = {f"validation/{name}": score for name, score in result.scores.items()}
        self._each(lambda sink: sink.add(scores, result.version))
        if self._sinks and (samples := read_samples(self._run.folder, result.version)):
            text = as_markdown(samples)
            self._each(lambda sink: sink.add_text("validation/samples", text, result.version))

    def _each(self, action: Callable[[CurveSink], None]) -> None:
        for sink in list(self._sinks):
            self._do(sink, action)

    def _do(self, sink: CurveSink, action: Callable[[CurveSink], None]) -> None:
        try:
            action(sink)
        except Exception as error:  # of packages that are not ours, and of the network
            self._sinks.remove(sink)
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self._say(
                f"{sink.place}: cannot be written: {printable(' '.join(reason.split()))}; continuing without {sink.title}"
            )
