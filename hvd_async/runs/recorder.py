"""The recorder of a run, on rank 0, which passes events to its parts in a fixed order.

The store's loop calls the recorder at every update, so one background thread writes large files from copies made during the
call; the loop waits only if this thread falls far behind. A file is removed only when another makes it superfluous: a
snapshot stays until a checkpoint on disk contains its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from hvd_async.errors import HvdAsyncError
from hvd_async.runs.checkpoint_keeper import CheckpointKeeper
from hvd_async.runs.end_conditions import Limits
from hvd_async.runs.evaluations import EvaluationHistory
from hvd_async.runs.events import Events
from hvd_async.runs.exported_models import Models
from hvd_async.runs.folder import Resumption
from hvd_async.runs.hashes import Hashes
from hvd_async.runs.progress_reports import Reporter
from hvd_async.runs.provenance import provenance_of_one_process
from hvd_async.runs.recorder_context import RunContext, TrainingClock, VersionCopies
from hvd_async.runs.recorder_part import RunPart
from hvd_async.runs.samples import forget_samples
from hvd_async.runs.scalars import Scalars
from hvd_async.runs.snapshots import Snapshots
from hvd_async.runs.summary import Ending, write_summary
from hvd_async.runs.totals import RunMetrics, Totals
from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.wire.stop import StopKind, StopNotice
from hvd_async.system.background_writer import MAX_UNWRITTEN_VECTORS, BackgroundWriter
from hvd_async.tasks.metric import metric_of_score

# Unwritten files up to this size in total never make the store wait.
_MAX_UNWRITTEN_BYTES = 1 << 26


class RunRecorder:
    """Records one run; a context manager. Implements `store.observer.Observer`; used by one thread."""

    def __init__(self, run: RunContext) -> None:
        """Open no file yet. Raises `ConfigError` if the task does not measure `validation.score`."""
        self._run = run
        self._clock = TrainingClock(run.clock)
        self._copies = VersionCopies()
        self._writer = BackgroundWriter(max(_MAX_UNWRITTEN_BYTES, MAX_UNWRITTEN_VECTORS * 4 * run.flat.size))
        self._history = EvaluationHistory(metric_of_score(run.config.validation.score, run.task.metrics))
        self._totals = Totals()
        self._limits = Limits(run, self._clock, self._history, self._totals)
        self._events = Events(run, self._clock)
        self._scalars = Scalars(run, self._clock, self._totals)
        self._snapshots = Snapshots(run, self._clock, self._writer, self._copies, self._history)
        self._models = Models(run, self._writer, self._history)
        self._checkpoints = CheckpointKeeper(run, self._writer, self._copies, self._events, self._history)
        self._hashes = Hashes(run, self._writer, self._copies, self._events)
        self._checkpoints.save_with(self._hashes, self._state)
        self._parts: Sequence[RunPart] = (  # each part may depend on the parts before it
            self._totals,
            self._limits,
            self._events,
            self._scalars,
            self._snapshots,
            self._models,
            self._checkpoints,
            self._hashes,
            Reporter(run, self._clock, self._totals),
        )
        self._num_processes = 0
        self._num_lost = 0
        self._num_joined = 0
        self._is_resumed = False
        self._store: ParameterStore | None = None
        self._is_saved = False  # whether the result of training is saved completely

    @property
    def metrics(self) -> RunMetrics:
        """Totals of the run so far."""
        return self._totals.metrics

    def restore(self, resumption: Resumption) -> None:
        """Restore the state of a checkpoint. Called before entering."""
        state = resumption.saved.data["recorder"]
        for part in self._parts:
            part.restore(state)
        self._history.restore(state["measurements"])
        self._clock.restore(state["seconds"])
        self._num_processes, self._is_resumed = state["processes"], True
        self._num_lost, self._num_joined = state["lost_workers"], state["joined_workers"]
        self._events.continue_from(resumption.log, has_gap=resumption.has_gap)
        first_lost = int(resumption.saved.data["store"]["version"]) + 1
        self._scalars.forget_from(first_lost)
        forget_samples(self._run.folder, first_lost)

    def __enter__(self) -> RunRecorder:
        """Open the event log and start the background thread."""
        self._events.__enter__()
        self._writer.__enter__()
        self._scalars.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Finish all writing."""
        try:
            self._writer.__exit__(kind, value, trace)
        finally:
            self._events.__exit__(kind, value, trace)
            self._scalars.__exit__(kind, value, trace)

    # --- Calls by the store: see `Observer`. --------------------------------------------------------------------------

    def started(self, store: ParameterStore) -> None:
        """Start the training clock, and pass the event on."""
        self._store = store
        self._copies.bind(store)
        self._clock.start()
        self._num_processes += 1
        for part in self._parts:
            part.started(store)
        self._copies.clear()

    def received(self, arrivals: Sequence[Arrival]) -> None:
        """Pass the event on to the parts."""
        for part in self._parts:
            part.received(arrivals)

    def updating(self) -> None:
        """Pass the event on to the parts."""
        for part in self._parts:
            part.updating()

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """Pass the event on to the parts."""
        for part in self._parts:
            part.refused(arrival, refusal)

    def updated(self, update: Update) -> None:
        """Pass the event on. Raises failures of the background thread after the update is recorded."""
        for part in self._parts:
            part.updated(update)
        self._copies.clear()
        self._writer.raise_failures()

    def lost(self, worker: int, reason: str, returned: Sequence[int]) -> None:
        """Pass the event on to the parts."""
        self._num_lost += 1
        for part in self._parts:
            part.lost(worker, reason, returned)

    def joined(self, worker: int) -> None:
        """Pass the event on to the parts."""
        self._num_joined += 1
        for part in self._parts:
            part.joined(worker)

    def left(self, worker: int, returned: Sequence[int]) -> None:
        """Pass the event on to the parts."""
        for part in self._parts:
            part.left(worker, returned)

    def evaluated(self, version: int, statistics: Sequence[float]) -> None:
        """Pass on the result. After training, the checkpoint is updated and the snapshot removed at once; during training,
        with the next checkpoint."""
        task = self._run.task
        result = self._snapshots.result_of(version, task.scores(statistics[: task.num_statistics]))
        self._history.add(result)
        for part in self._parts:
            part.evaluated(result)
        if not self._clock.is_running:
            self._checkpoints.save_state()

    def num_evaluations_due(self) -> int:
        """Return how many snapshots of this process are on disk or were evaluated; 0 if evaluation follows training."""
        return 0 if self._run.config.validation.when == "after" else self._snapshots.num_written()

    def is_finished(self) -> bool:
        """Whether the run is to end before its data end: see `Limits`."""
        return self._limits.is_finished()

    def ended(self, notice: StopNotice | None) -> None:
        """Save everything that is to outlive this process."""
        self.end_training(is_complete=notice is None or notice.is_end)
        if notice is not None and notice.kind is StopKind.ORPHANED:
            self._conclude_alone(notice)

    def settle(self) -> None:
        """Finish all writing that was begun."""
        self._writer.forget_failures()

    def rescue(self, stop: StopNotice | None = None) -> bool:
        """Save the store if training has begun; return whether nothing is left to be saved. A failure here is printed, not
        raised: the first failure ends the run."""
        if self._store is None:
            return True
        self.settle()
        try:
            if not self._is_saved:
                self.end_training(is_complete=False)
            if stop is not None:
                self._conclude_alone(stop)
        except HvdAsyncError as error:
            self._writer.forget_failures()
            self._run.progress.say(f"the progress since the last checkpoint could not be saved: {error}")
        return self._is_saved

    # --- The end. -----------------------------------------------------------------------------------------------------

    def end_training(self, *, is_complete: bool) -> None:
        """Stop the training clock; save a checkpoint and, in a complete run, a snapshot of the last version. Blocks on the
        disk."""
        assert self._store is not None
        self._clock.stop()
        for arrival, refusal in self._store.take_refused():
            self.refused(arrival, refusal)
        if is_complete:
            self._snapshots.take_last()
        self._hashes.take()
        self._hashes.log(wait=True)  # before the checkpoint, which contains the length of the log
        self._writer.wait()  # memory suffices for one checkpoint only
        self._checkpoints.save()
        self._copies.clear()
        self._writer.wait()
        self._is_saved = True

    def snapshots_to_evaluate(self) -> list[int]:
        """Return versions that are still to be evaluated and whose snapshots are on disk. Blocks on the disk."""
        return self._snapshots.to_evaluate()

    def is_out_of_patience(self) -> bool:
        """Whether too many evaluations have passed without a better score."""
        return self._limits.is_out_of_patience()

    def status_of(self, notice: StopNotice | None) -> str:
        """Return the summary's word for how the run ended; `notice` is the stop notice, if any."""
        return self._limits.status_of(notice)

    def conclude(self, ending: Ending) -> dict[str, Any]:
        """Write the summary and, unless the run was stopped, the last model; return the summary. Blocks on the disk."""
        assert self._store is not None
        if ending.status == "stopped":
            self._scalars.is_stopped()
        else:
            self._models.export_last(self._store)
            if self._is_resumed:
                self._models.export_best_again()
            self._checkpoints.save_state(is_last=True)
        self._writer.wait()
        self._events.write("end", status=ending.status)
        self._events.log.mark()
        missing = self._num_missing() if ending.status == "finished" else 0
        if missing:
            self._run.progress.say(
                f"{missing:,} of {self._run.task.num_batches():,} batches were not computed, since all workers left their loops"
                " early; a resumed run computes them"
            )
        facts = {
            "processes": self._num_processes,
            "lost_workers": self._num_lost,
            "joined_workers": self._num_joined,
            "seconds": self._clock.seconds,
            **self.metrics.to_json(),
            "pending": len(self._store.pending),
            "missing": missing,
            "unmeasured": self._snapshots.unmeasured(),
        }
        return write_summary(self._run, ending, self._history, facts)

    def _num_missing(self) -> int:
        """Return how many batches of a run whose batches bound it were claimed, but did not arrive."""
        assert self._store is not None
        num_batches = self._run.task.num_batches()
        return 0 if num_batches is None else self._store.ledger.num_missing(num_batches)

    def _conclude_alone(self, stop: StopNotice) -> None:
        """Write the summary of a run whose other ranks cannot be asked any more."""
        provenance = self._run.provenance
        ranks = provenance_of_one_process().ranks if provenance is None else provenance.ranks
        self.conclude(Ending("stopped", sum(rank["worker"] is not None for rank in ranks), 0, 0, stop))

    def _state(self) -> dict[str, Any]:
        """Return what a resumed run needs of all parts, as plain data."""
        state: dict[str, Any] = {
            "measurements": self._history.to_json(),
            "seconds": self._clock.seconds,
            "processes": self._num_processes,
            "lost_workers": self._num_lost,
            "joined_workers": self._num_joined,
        }
        for part in self._parts:
            state |= part.state()
        return state
