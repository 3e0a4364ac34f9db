"""Everything that is written down about a run, on rank 0: events, snapshots, checkpoints, evaluations, models.

The store's loop calls it at every update, so large files are written by one background thread, from copies made at the call;
the loop waits only when that thread falls far behind. What was written is given up only for what makes it superfluous: a
snapshot stays until a checkpoint on the disk knows what it gave.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from types import TracebackType
from typing import Any

import torch

from hvd_async.config import RunConfig
from hvd_async.errors import HvdAsyncError
from hvd_async.runs.checkpoint import read_tensors, write_tensors
from hvd_async.runs.checkpoint_keeper import CheckpointKeeper
from hvd_async.runs.evaluations import EvaluationHistory, EvaluationResult
from hvd_async.runs.event_log import EventLog, LogMark
from hvd_async.runs.folder import Resumption, RunFolder
from hvd_async.runs.hashes import ParameterHashes
from hvd_async.runs.progress import Progress
from hvd_async.runs.provenance import Provenance, provenance_of_one_process
from hvd_async.runs.scalars import Scalars
from hvd_async.runs.totals import RunMetrics
from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.wire.stop import StopKind, StopNotice
from hvd_async.system.background_writer import MAX_UNWRITTEN_VECTORS, BackgroundWriter
from hvd_async.system.files import write_file
from hvd_async.tasks.evaluation import Evaluation
from hvd_async.tasks.task import Task
from hvd_async.vectors.flat import FlatParameters

_SNAPSHOT_NAME = "parameters"
_SCALARS_EVERY_SECONDS = 1.0
# Small ones never make the store wait.
_MAX_UNWRITTEN_BYTES = 1 << 26
# Refusals that say that training itself has gone wrong.
_NOT_FINITE = (Refusal.NOT_FINITE, Refusal.SUM_NOT_FINITE)


class RunRecorder:
    """Keeps the books of one run; a context manager. Implements `store.server.Observer`; used by one thread."""

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        task: Task,
        flat: FlatParameters,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
        provenance: Provenance | None = None,
        is_simulated: bool = False,
    ) -> None:
        """Opens nothing yet. `provenance`: where it is computed, by default in this process alone.

        `clock` gives the seconds that are written down. `is_simulated`: they are virtual, which `start` events and the
        summary say."""
        self._folder = folder
        self._config = config
        self._task = task
        self._flat = flat
        self._progress = progress
        self._clock = clock
        self._provenance = provenance
        self._num_processes = 0
        self._num_idle = 0
        self._is_simulated = is_simulated
        self.metrics = RunMetrics()
        self.measurements = EvaluationHistory()
        self._received: dict[int, float] = {}  # seconds, by batch, of arrivals whose fate is open
        self._updating_since = 0.0
        self._moments: dict[int, tuple[int, float]] = {}  # version of a snapshot -> tokens and seconds then
        self._seconds_before = 0.0
        self._resumed: Resumption | None = None
        self._started: float | None = None
        self._snapshots_written: list[Future[None]] = []
        self._num_written = 0
        self._writer = BackgroundWriter(max(_MAX_UNWRITTEN_BYTES, MAX_UNWRITTEN_VECTORS * 4 * flat.size))
        self._scalars = Scalars(folder.tensorboard if config.training.tensorboard else None, progress.say)
        self._scalars_at = 0.0
        # A simulated run is not resumed, and what it writes down is to follow from its seed.
        self._checkpoints = CheckpointKeeper(folder, config.training, self._writer, by_time=not is_simulated)
        self._hashes = ParameterHashes(self._writer.submit)
        self._copies: dict[str, torch.Tensor] = {}  # of this version's vectors, for all that are to be written of it
        self._store: ParameterStore
        self._has_store = False
        self._is_saved = False  # all that training made
        self._num_not_finite = 0  # in a row
        self._has_diverged = False

    def restore(self, resumption: Resumption) -> None:
        """Continue the books of a checkpoint. Called before entering."""
        data = resumption.saved.data["recorder"]
        self.metrics = RunMetrics.from_json(data["metrics"])
        self.measurements = EvaluationHistory.from_json(data["measurements"])
        self._moments = {int(version): (tokens, seconds) for version, (tokens, seconds) in data["moments"].items()}
        self._received = {int(batch): seconds for batch, seconds in data["received"].items()}
        self._seconds_before = data["seconds"]
        self._num_processes = data["processes"]
        self._resumed = resumption
        self._scalars.forget_from(int(resumption.saved.data["store"]["version"]) + 1)

    def __enter__(self) -> RunRecorder:
        """Open the event log and start the background thread."""
        self._log = EventLog(self._folder.events, LogMark() if self._resumed is None else self._resumed.log).__enter__()
        self._writer.__enter__()
        self._scalars.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Finish what is being written."""
        try:
            self._writer.__exit__(kind, value, trace)
        finally:
            self._log.__exit__(kind, value, trace)
            self._scalars.__exit__(kind, value, trace)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier processes of this run included."""
        return self._seconds_before + (0.0 if self._started is None else self._clock() - self._started)

    @property
    def _num_parameters(self) -> int:
        return self._flat.num_parameters

    def started(self, store: ParameterStore) -> None:
        """See `Observer.started`: the training clock runs from here."""
        self._store, self._has_store = store, True
        self._started = self._clock()
        self._num_processes += 1
        if self._resumed is not None and self._resumed.has_gap:
            self._log.write("gap", self.seconds, version=store.version)
        provenance = self._provenance if self._provenance is not None else provenance_of_one_process()
        self._log.write(
            "start",
            self.seconds,
            version=store.version,
            parameters=self._num_parameters,
            pending=[arrival.batch for arrival in store.pending],
            data_fingerprint=self._task.fingerprint(),
            **self._describe_strategy(),
            **provenance.to_json(),
        )
        self._take_hash()
        self._copies.clear()
        self._checkpoints.begin()

    def received(self, arrivals: Sequence[Arrival]) -> None:
        """See `Observer.received`."""
        now = self.seconds
        self._received.update((arrival.batch, now) for arrival in arrivals)

    def updating(self) -> None:
        """See `Observer.updating`."""
        self._updating_since = self.seconds

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """See `Observer.refused`."""
        self.metrics.add_refused(arrival, refusal)
        if refusal in _NOT_FINITE:
            self._num_not_finite += 1
            self._has_diverged |= self._num_not_finite >= self._config.training.diverged_after
        self._log.write("arrival", self.seconds, **self._describe(arrival), refused=refusal.value)

    def updated(self, update: Update) -> None:
        """See `Observer.updated`."""
        self.metrics.add_update(update)
        self._num_not_finite = 0
        now = self.seconds
        for arrival in update.arrivals:
            staleness = update.staleness(arrival)
            self._log.write("arrival", now, **self._describe(arrival), version=update.version, staleness=staleness)
        self._log.write(
            "update",
            now,
            version=update.version,
            arrivals=len(update.arrivals),
            tokens=update.tokens,
            loss=update.loss,
            learning_rate=update.learning_rate,
            gradient_norm=update.gradient_norm,
            update_seconds=round(now - self._updating_since, 6),
        )
        self._write_scalars(update)
        self._num_idle += update.learning_rate == 0.0
        if self._num_idle == 2:  # that of the last version of a whole schedule is 0
            self._progress.say(
                f"version {update.version}: the learning rate is 0 from here on; see optimizer.schedule.total"
            )
        validation, training = self._config.validation, self._config.training
        if validation.is_due(update.version, self._store.tokens, update.tokens):
            self._take_snapshot()
        if self._checkpoints.is_due(update.version):
            self._save_checkpoint()
        if training.hash_every and update.version % training.hash_every == 0:
            self._take_hash()
        self._copies.clear()
        self._log_hashes(wait=self._is_simulated)  # where all that is written down follows from a seed
        self._progress.update(update, self.metrics, now)
        self._writer.raise_failures()  # when all of this update is in the books

    def evaluated(self, version: int, statistics: Sequence[float]) -> None:
        """See `Observer.evaluated`. Exports the model if it is the best so far. After training the checkpoint learns of it at
        once, and the snapshot goes; else with the next checkpoint."""
        evaluation = Evaluation.from_vector(statistics[: Evaluation.size])
        tokens, seconds = self._moments[version]
        measured = EvaluationResult(version, tokens, seconds, evaluation.loss, evaluation.bleu)
        self.measurements.add(measured)
        fields = {key: value for key, value in asdict(measured).items() if key != "seconds"}
        self._log.write("evaluation", self.seconds, **fields, snapshot_seconds=seconds)
        self._progress.evaluated(version, measured.loss, measured.bleu)
        self._scalars.add("validation/loss", measured.loss, version)
        if measured.bleu is not None:
            self._scalars.add("validation/bleu", measured.bleu, version)
        if measured == self.measurements.best:
            self._writer.submit(self._export_best, measured)
        if self._started is None:
            self._checkpoints.save_books(self._books(), self._log, self.measurements)

    def num_evaluations_due(self) -> int:
        """See `Observer.num_evaluations_due`."""
        if self._config.validation.when == "after":
            return 0
        while len(self._snapshots_written) > self._num_written and self._snapshots_written[self._num_written].done():
            self._num_written += 1
        return self._num_written

    def is_finished(self) -> bool:
        """See `Observer.is_finished`: patience is exhausted, time is over, or gradients have not been finite for long."""
        limit = self._config.training.seconds
        return (limit is not None and self.seconds >= limit) or self._has_diverged or self.is_out_of_patience()

    def is_out_of_patience(self) -> bool:
        """Whether too many validations have passed without a better loss."""
        patience = self._config.validation.patience
        return patience is not None and self.measurements.num_without_progress() >= patience

    def ended(self, notice: StopNotice | None) -> None:
        """See `Observer.ended`."""
        self.end_training(is_complete=notice is None or notice.is_end)
        if notice is not None and notice.kind is StopKind.ORPHANED:
            self._conclude_alone(notice)

    def _conclude_alone(self, stop: StopNotice) -> None:
        """The summary of a run whose other ranks cannot be asked any more."""
        ranks = provenance_of_one_process().ranks if self._provenance is None else self._provenance.ranks
        self.conclude("stopped", sum(rank["worker"] is not None for rank in ranks), 0, 0, stop)

    def end_training(self, *, is_complete: bool) -> None:
        """Stop the training clock; keep a checkpoint and, of a complete run, a snapshot of the last version. Blocks on the
        disk."""
        self._seconds_before, self._started = self.seconds, None
        for arrival, refusal in self._store.take_refused():
            self.refused(arrival, refusal)
        version = self._store.version
        if is_complete and version not in self.measurements.versions:
            self._writer.wait()
            if not self._folder.snapshot(version).exists():  # not due, or a process before could not write it
                self._take_snapshot()
        self._take_hash()
        self._log_hashes(wait=True)  # before the checkpoint, which knows how long the log is
        self._writer.wait()  # there is memory for one checkpoint
        self._save_checkpoint()
        self._copies.clear()
        self._writer.wait()
        self._is_saved = True

    def settle(self) -> None:
        """See `Observer.settle`."""
        self._writer.forget_failures()

    def rescue(self, stop: StopNotice | None = None) -> None:
        """See `Observer.rescue`: what fails here is said, not raised, for the first failure is what ends the run."""
        if not self._has_store:
            return
        self.settle()
        try:
            if not self._is_saved:
                self.end_training(is_complete=False)
            if stop is not None:
                self._conclude_alone(stop)
        except HvdAsyncError as error:
            self._writer.forget_failures()
            self._progress.say(f"what training made since the last checkpoint could not be saved: {error}")

    def snapshots_to_evaluate(self) -> list[int]:
        """Versions that were to be measured and are not, whose snapshots lie on the disk. Blocks on the disk."""
        self._writer.wait()
        versions = sorted(self._moments.keys() - self.measurements.versions)
        missing = [version for version in versions if not self._folder.snapshot(version).exists()]
        if missing:
            listed = ", ".join(map(str, missing))
            self._progress.say(f"{self._folder.snapshots}: got no snapshots of versions {listed}, which are not measured")
        return [version for version in versions if version not in missing]

    def status_of(self, notice: StopNotice | None) -> str:
        """In a word of the summary: see docs/run-folder.md."""
        last = self.measurements.last
        if notice is not None and not notice.is_end:
            return "stopped"
        if self._has_diverged or (last is not None and not math.isfinite(last.loss)):
            return "diverged"
        return "finished early" if self.is_out_of_patience() else "finished"

    def conclude(
        self, status: str, num_workers: int, num_steps: int, num_overrun: int = 0, stop: StopNotice | None = None
    ) -> dict[str, Any]:
        """Write the summary and, of a run that was not stopped, the last model; what the summary says. Blocks on the disk.

        `num_steps`: of this process; `num_overrun`: of them, those that lasted longer than emulation was to make them. `stop`:
        what stopped it."""
        last, best = self.measurements.last, self.measurements.best
        if status != "stopped":
            self._export_last(last)
            if self._resumed is not None and best is not None and self._folder.snapshot(best.version).exists():
                # The one that is there may be of a future that was given up with the process before.
                self._writer.submit(self._export_best, best)
            self._checkpoints.save_books(self._books(), self._log, self.measurements, is_last=True)
        self._writer.wait()
        self._log.write("end", self.seconds, status=status)
        self._log.mark()
        summary = {
            "name": self._folder.root.name,
            "status": status,
            "processes": self._num_processes,
            "job": None if self._provenance is None else self._provenance.job_to_json(),
            **self._describe_strategy(),
            "num_workers": num_workers,
            "parameters": self._num_parameters,
            "seconds": self.seconds,
            **self.metrics.to_json(),
            "pending": len(self._store.pending),
            "steps": num_steps,
            "overrun_steps": num_overrun,
            "stop": None if stop is None or stop.is_end else stop.to_json(),
            "measurements": self.measurements.to_json(),
            "unmeasured": sorted(self._moments.keys() - self.measurements.versions),
            "best": None if best is None else asdict(best),
            "last": None if last is None else asdict(last),
        }
        write_file(self._folder.summary, json.dumps(summary, indent=2).encode())
        return summary

    def _describe(self, arrival: Arrival) -> dict[str, Any]:
        """The fields of an arrival's event, those of its fate left out."""
        return {**asdict(arrival), "received_seconds": round(self._received.pop(arrival.batch), 6)}

    def _export_last(self, last: EvaluationResult | None) -> None:
        tensors = self._flat.named_tensors(self._store.evaluated_parameters)
        measured = {} if last is None else {"validation_loss": last.loss, "validation_bleu": last.bleu}
        self._task.export(self._folder.models / "last", tensors, self._store.version, measured)

    def _take_snapshot(self) -> None:
        version = self._store.version
        self._moments.setdefault(version, (self._store.tokens, self.seconds))
        vector = self._copy("average" if self._config.optimizer.average_decay else "parameters")
        written = self._writer.submit(_write_snapshot, self._folder, version, vector, num_bytes=vector.nbytes)
        self._snapshots_written.append(written)

    def _take_hash(self) -> None:
        if self._config.training.hash_every:
            names = {"hash": "parameters", **({"average": "average"} if self._config.optimizer.average_decay else {})}
            self._hashes.take(self._store.version, self._copy, names)

    def _log_hashes(self, *, wait: bool = False) -> None:
        for fields in self._hashes.finished(wait=wait):
            self._log.write("parameter_hash", self.seconds, **fields)

    def _copy(self, name: str) -> torch.Tensor:
        """The parameters or their average as they are now; one copy for all that are to be written of a version.

        It is on the CPU: the store's next versions, and on a GPU its stream, do not wait for the thread that writes.
        """
        if name not in self._copies:
            live = self._store.parameters if name == "parameters" else self._store.evaluated_parameters
            self._copies[name] = live.to("cpu", copy=True)
        return self._copies[name]

    def _save_checkpoint(self) -> None:
        self._take_hash()
        tensors, data = self._store.state()
        copies = {
            name: self._copies[name] if name in self._copies else tensor.to("cpu", copy=True)
            for name, tensor in tensors.items()
        }
        document = {"data_fingerprint": self._task.fingerprint(), "store": data, "recorder": self._books()}
        self._checkpoints.save(copies, document, self._log, self.measurements)

    def _books(self) -> dict[str, Any]:
        mark = self._log.mark()
        return {
            "metrics": self.metrics.to_json(),
            "measurements": self.measurements.to_json(),
            "received": self._received,
            "moments": self._moments,
            "seconds": self.seconds,
            "log": [mark.num_bytes, mark.checksum],
            "processes": self._num_processes,
        }

    def _export_best(self, best: EvaluationResult) -> None:
        tensors = self._flat.named_tensors(read_snapshot(self._folder, best.version))
        measured = {"validation_loss": best.loss, "validation_bleu": best.bleu}
        self._task.export(self._folder.models / "best", tensors, best.version, measured)

    def _write_scalars(self, update: Update) -> None:
        now = time.monotonic()
        if now - self._scalars_at < _SCALARS_EVERY_SECONDS:
            return
        self._scalars_at = now
        staleness = sum(map(update.staleness, update.arrivals)) / len(update.arrivals)
        for name, value in (
            ("training/loss", update.loss),
            ("training/learning_rate", update.learning_rate),
            ("training/gradient_norm", update.gradient_norm),
            ("training/staleness", staleness),
            ("training/tokens", self.metrics.tokens),
            ("training/tokens_per_second", self.metrics.tokens / max(1e-9, self.seconds)),
        ):
            self._scalars.add(name, value, update.version)

    def _describe_strategy(self) -> dict[str, Any]:
        config = self._config
        strategy = config.strategy.model_dump()
        kind = strategy.pop("kind")
        simulated = {"simulated": True} if self._is_simulated else {}
        if kind != "async":
            return {**simulated, "strategy": kind, "options": {"reduction": strategy["reduction"]}}
        return {
            **simulated,
            "strategy": kind,
            "options": strategy,
            "push": config.push.model_dump(),
            "store": config.store.model_dump(),
        }


def read_snapshot(folder: RunFolder, version: int) -> torch.Tensor:
    """The parameters of a snapshot: [size], float32. Raises `CheckpointError` if it is missing or damaged."""
    return read_tensors(folder.snapshot(version))[_SNAPSHOT_NAME]


def _write_snapshot(folder: RunFolder, version: int, vector: torch.Tensor) -> None:
    write_tensors(folder.snapshot(version), {_SNAPSHOT_NAME: vector})
