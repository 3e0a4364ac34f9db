"""Everything that is written down about a run, on rank 0: events, snapshots, checkpoints, evaluations, models.

The store's loop calls it at every update, so large files are written by one background thread, from copies made at the call;
the loop waits only when that thread falls far behind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch

from hvd_async.atomic import write_file
from hvd_async.checkpoint import Checkpoint, read_tensors, save_checkpoint, write_tensors
from hvd_async.config import RunConfig
from hvd_async.digests import Digests
from hvd_async.events import EventLog
from hvd_async.flat import FlatParameters
from hvd_async.metrics import RunMetrics
from hvd_async.nmt.scoring import Evaluation
from hvd_async.origin import Origin, origin_of_one_process
from hvd_async.progress import Progress
from hvd_async.run_folder import RunFolder
from hvd_async.store.parameter_store import Arrival, ParameterStore, Refusal, Update
from hvd_async.training import Task

_SNAPSHOT_NAME = "parameters"
_SCALARS_EVERY_SECONDS = 1.0
_MAX_UNWRITTEN = 8


@dataclass(frozen=True)
class Measurement:
    """An evaluation of one version, with how far training was when that version was made."""

    version: int
    tokens: int
    seconds: float
    loss: float
    bleu: float | None


class RunJournal:
    """Keeps the books of one run; a context manager. Implements `store.server.Journal`; used by one thread."""

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        task: Task,
        flat: FlatParameters,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
        origin: Origin | None = None,
        is_simulated: bool = False,
    ) -> None:
        """Opens nothing yet. `origin`: where it is computed, by default in this process alone.

        `clock` gives the seconds that are written down. `is_simulated`: they are virtual, which `start` events and the
        summary say."""
        self._folder = folder
        self._config = config
        self._task = task
        self._flat = flat
        self._progress = progress
        self._clock = clock
        self._origin = origin
        self._num_processes = 0
        self._num_idle = 0
        self._is_simulated = is_simulated
        self.metrics = RunMetrics()
        self.measurements: list[Measurement] = []
        self._received: dict[int, float] = {}  # seconds, by batch, of arrivals whose fate is open
        self._updating_since = 0.0
        self._moments: dict[int, tuple[int, float]] = {}  # version of a snapshot -> tokens and seconds then
        self._seconds_before = 0.0
        self._log_bytes = 0
        self._started: float | None = None
        self._snapshots_written: list[Future[None]] = []
        self._work: list[Future[Any]] = []
        self._num_written = 0
        self._scalars_at = 0.0
        self._obsolete: list[int] = []
        self._digests = Digests(self._submit)
        self._copies: dict[str, torch.Tensor] = {}  # of this version's vectors, for all that are to be written of it

    def restore(self, data: dict[str, Any]) -> None:
        """Continue the books of a checkpoint. Called before entering."""
        self.metrics = RunMetrics.from_json(data["metrics"])
        self.measurements = [Measurement(**fields) for fields in data["measurements"]]
        self._moments = {int(version): (tokens, seconds) for version, (tokens, seconds) in data["moments"].items()}
        self._received = {int(batch): seconds for batch, seconds in data["received"].items()}
        self._seconds_before = data["seconds"]
        self._log_bytes = data["log_bytes"]
        self._num_processes = data.get("processes", 1)  # checkpoints of older versions do not say it

    def __enter__(self) -> RunJournal:
        """Open the event log and start the background thread."""
        self._log = EventLog(self._folder.events, keep_bytes=self._log_bytes).__enter__()
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hvd-async-journal")
        self._scalars = _open_tensorboard(self._folder) if self._config.training.tensorboard else None
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Finish what is being written."""
        self._background.shutdown(wait=True)
        self._log.__exit__(kind, value, trace)
        if self._scalars is not None:
            self._scalars.close()
        if kind is None:
            self._raise_failures()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier processes of this run included."""
        return self._seconds_before + (0.0 if self._started is None else self._clock() - self._started)

    @property
    def _num_parameters(self) -> int:
        return self._flat.num_parameters

    @property
    def best(self) -> Measurement | None:
        """The measurement with the lowest loss; the earliest of several."""
        finite = [m for m in self.measurements if m.loss == m.loss]
        return min(finite, key=lambda m: m.loss, default=None)

    def started(self, store: ParameterStore) -> None:
        """See `Journal.started`: the training clock runs from here."""
        self._store = store
        self._started = self._clock()
        self._num_processes += 1
        origin = self._origin if self._origin is not None else origin_of_one_process()
        self._log.write(
            "start",
            self.seconds,
            version=store.version,
            parameters=self._num_parameters,
            pending=[arrival.batch for arrival in store.pending],
            data=self._task.fingerprint(),
            **self._describe_strategy(),
            **origin.to_json(),
        )
        self._take_digest()
        self._copies.clear()

    def received(self, arrivals: Sequence[Arrival]) -> None:
        """See `Journal.received`."""
        now = self.seconds
        self._received.update((arrival.batch, now) for arrival in arrivals)

    def updating(self) -> None:
        """See `Journal.updating`."""
        self._updating_since = self.seconds

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """See `Journal.refused`."""
        self.metrics.add_refused(arrival, refusal)
        self._log.write("arrival", self.seconds, **self._describe(arrival), refused=refusal.value)

    def updated(self, update: Update) -> None:
        """See `Journal.updated`."""
        self._raise_failures()
        self.metrics.add_update(update)
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
        if training.checkpoint_every and update.version % training.checkpoint_every == 0:
            self._save_checkpoint()
        if training.digest_every and update.version % training.digest_every == 0:
            self._take_digest()
        self._copies.clear()
        self._log_digests()
        self._progress.update(update, self.metrics, now)

    def evaluated(self, version: int, statistics: Sequence[float]) -> None:
        """See `Journal.evaluated`. Exports the model if it is the best so far, and removes the snapshot."""
        evaluation = Evaluation.from_vector(statistics[: Evaluation.size])
        tokens, seconds = self._moments[version]
        measured = Measurement(version, tokens, seconds, evaluation.loss, evaluation.bleu)
        self.measurements.append(measured)
        fields = {key: value for key, value in asdict(measured).items() if key != "seconds"}
        self._log.write("evaluation", self.seconds, **fields, snapshot_seconds=seconds)
        self._progress.evaluated(version, measured.loss, measured.bleu)
        if self._scalars is not None:
            self._scalars.add_scalar("validation/loss", measured.loss, version)
            if measured.bleu is not None:
                self._scalars.add_scalar("validation/bleu", measured.bleu, version)
        if measured == self.best:
            self._submit(self._export_best, measured)
        self._obsolete.append(version)
        if not self._config.training.checkpoint_every:
            self._remove_obsolete_snapshots()

    def num_evaluations_due(self) -> int:
        """See `Journal.num_evaluations_due`."""
        if self._config.validation.when == "after":
            return 0
        while len(self._snapshots_written) > self._num_written and self._snapshots_written[self._num_written].done():
            self._num_written += 1
        return self._num_written

    def is_finished(self) -> bool:
        """See `Journal.is_finished`: patience is exhausted, or time is over."""
        limit = self._config.training.seconds
        return (limit is not None and self.seconds >= limit) or self.is_out_of_patience()

    def is_out_of_patience(self) -> bool:
        """Whether too many validations have passed without a better loss."""
        patience, best = self._config.validation.patience, self.best
        if patience is None or best is None:
            return False
        return sum(m.version > best.version for m in self.measurements) >= patience

    def end_training(self, *, is_complete: bool) -> None:
        """Stop the training clock; keep a checkpoint and, of a complete run, a snapshot of the last version."""
        self._seconds_before, self._started = self.seconds, None
        for arrival, refusal in self._store.take_refused():
            self.refused(arrival, refusal)
        if is_complete and self._store.version not in self._moments:
            self._take_snapshot()
        self._take_digest()
        self._log_digests(wait=True)  # before the checkpoint, which knows how long the log is
        self._save_checkpoint()
        self._copies.clear()
        self.wait_for_files()

    def snapshots_to_evaluate(self) -> list[int]:
        """Versions whose snapshots lie on the disk and were not evaluated yet. Blocks on the disk."""
        self.wait_for_files()
        done = {m.version for m in self.measurements}
        return [
            version for version in sorted(self._moments) if version not in done and self._folder.snapshot(version).exists()
        ]

    def wait_for_files(self) -> None:
        """Block until everything submitted so far is on the disk."""
        while self._work:
            self._work.pop(0).result()

    def conclude(self, how: str, num_workers: int, num_steps: int, num_longer: int = 0) -> dict[str, Any]:
        """Write the summary and, of a run that was not stopped, the last model; what the summary says. Blocks on the disk.

        `num_steps`: of this process; `num_longer`: of them, those that lasted longer than emulation was to make them."""
        last = max(self.measurements, key=lambda m: m.version, default=None)
        if how != "stopped":
            self._export_last(last)
            self._save_checkpoint()  # again: it now knows what was measured, and a longer run may continue from it
        self.wait_for_files()
        self._log.write("end", self.seconds, how=how)
        self._log.flush()
        summary = {
            "name": self._folder.root.name,
            "how": how,
            "processes": self._num_processes,
            "job": None if self._origin is None else self._origin.job_to_json(),
            **self._describe_strategy(),
            "num_workers": num_workers,
            "parameters": self._num_parameters,
            "seconds": self.seconds,
            **self.metrics.to_json(),
            "pending": len(self._store.pending),
            "steps": num_steps,
            "longer_steps": num_longer,
            "measurements": [asdict(m) for m in self.measurements],
            "best": None if self.best is None else asdict(self.best),
            "last": None if last is None else asdict(last),
        }
        write_file(self._folder.summary, json.dumps(summary, indent=2).encode())
        return summary

    def _describe(self, arrival: Arrival) -> dict[str, Any]:
        """The fields of an arrival's event, those of its fate left out."""
        return {**asdict(arrival), "received_seconds": round(self._received.pop(arrival.batch), 6)}

    def _export_last(self, last: Measurement | None) -> None:
        tensors = self._flat.named_tensors(self._store.evaluated_parameters)
        measured = {} if last is None else {"validation_loss": last.loss, "validation_bleu": last.bleu}
        self._task.export(self._folder.models / "last", tensors, self._store.version, measured)

    def _take_snapshot(self) -> None:
        version = self._store.version
        self._moments[version] = (self._store.tokens, self.seconds)
        vector = self._copy("average" if self._config.optimizer.average_decay else "parameters")
        self._snapshots_written.append(self._submit(_write_snapshot, self._folder, version, vector))

    def _take_digest(self) -> None:
        if self._config.training.digest_every:
            names = {"digest": "parameters", **({"average": "average"} if self._config.optimizer.average_decay else {})}
            self._digests.take(self._store.version, self._copy, names)

    def _log_digests(self, *, wait: bool = False) -> None:
        for fields in self._digests.finished(wait=wait):
            self._log.write("digest", self.seconds, **fields)

    def _copy(self, name: str) -> torch.Tensor:
        """The parameters or their average as they are now; one copy for all that are to be written of a version.

        It is on the CPU: the store's next versions, and on a GPU its stream, do not wait for the thread that writes.
        """
        if name not in self._copies:
            live = self._store.parameters if name == "parameters" else self._store.evaluated_parameters
            self._copies[name] = live.to("cpu", copy=True)
        return self._copies[name]

    def _save_checkpoint(self) -> None:
        self._take_digest()
        tensors, data = self._store.state()
        document = {
            "data": self._task.fingerprint(),
            "store": data,
            "journal": {
                "metrics": self.metrics.to_json(),
                "measurements": [asdict(m) for m in self.measurements],
                "received": self._received,
                "moments": self._moments,
                "seconds": self.seconds,
                "log_bytes": self._log.flush(),
                "processes": self._num_processes,
            },
        }
        document = json.loads(json.dumps(document))  # a copy: the books go on while the file is written
        copies = {
            name: self._copies[name] if name in self._copies else tensor.to("cpu", copy=True)
            for name, tensor in tensors.items()
        }
        keep = self._config.training.keep_checkpoints
        self._submit(save_checkpoint, self._folder.checkpoints, data["version"], Checkpoint(copies, document), keep)
        self._remove_obsolete_snapshots()

    def _export_best(self, best: Measurement) -> None:
        tensors = self._flat.named_tensors(read_snapshot(self._folder, best.version))
        measured = {"validation_loss": best.loss, "validation_bleu": best.bleu}
        self._task.export(self._folder.models / "best", tensors, best.version, measured)

    def _remove_obsolete_snapshots(self) -> None:
        """Of versions that were evaluated. A run resumed from an older checkpoint evaluates them again, so they are kept
        until a checkpoint knows of it."""
        for version in self._obsolete:
            self._submit(self._folder.snapshot(version).unlink, True)
        self._obsolete.clear()

    def _write_scalars(self, update: Update) -> None:
        now = time.monotonic()
        if self._scalars is None or now - self._scalars_at < _SCALARS_EVERY_SECONDS:
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
            self._scalars.add_scalar(name, value, update.version)

    def _describe_strategy(self) -> dict[str, Any]:
        config = self._config
        strategy = config.strategy.model_dump()
        kind = strategy.pop("kind")
        strategy["provisional"] = config.strategy.has_provisional
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

    def _submit(self, function: Any, *arguments: Any) -> Future[Any]:
        while len(self._work) >= _MAX_UNWRITTEN:  # the disk is slower than the run: wait rather than fill the memory
            self._work.pop(0).result()
        future = self._background.submit(function, *arguments)
        self._work.append(future)
        return future

    def _raise_failures(self) -> None:
        while self._work and self._work[0].done():
            self._work.pop(0).result()


def read_snapshot(folder: RunFolder, version: int) -> torch.Tensor:
    """The parameters of a snapshot: [size], float32. Raises `CheckpointError` if it is missing or damaged."""
    return read_tensors(folder.snapshot(version))[_SNAPSHOT_NAME]


def _write_snapshot(folder: RunFolder, version: int, vector: torch.Tensor) -> None:
    write_tensors(folder.snapshot(version), {_SNAPSHOT_NAME: vector})


def _open_tensorboard(folder: RunFolder) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    return SummaryWriter(str(folder.tensorboard))
