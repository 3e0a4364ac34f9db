"""The events that the recorder writes into the log; docs/run-folder.md lists their fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any

from hvd_async.runs.evaluations import EvaluationResult
from hvd_async.runs.event_log import EventLog, LogMark
from hvd_async.runs.provenance import provenance_of_one_process
from hvd_async.runs.recorder_context import RunContext, TrainingClock
from hvd_async.runs.recorder_part import RunPart
from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.parameter_store import ParameterStore


class Events(RunPart):
    """Writes the event log; a context manager."""

    def __init__(self, run: RunContext, clock: TrainingClock) -> None:
        """Open no file yet."""
        self._run = run
        self._clock = clock
        self._keep = LogMark()
        self._has_gap = False
        self._received: dict[int, float] = {}  # seconds by batch, for arrivals whose outcome is open
        self._updating_since = 0.0

    def continue_from(self, mark: LogMark, *, has_gap: bool) -> None:
        """Keep the log of earlier processes up to `mark`. `has_gap`: events between `mark` and the checkpoint are lost."""
        self._keep, self._has_gap = mark, has_gap

    def __enter__(self) -> Events:
        """Open the log."""
        self.log = EventLog(self._run.folder.events, self._keep).__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Close the log."""
        self.log.__exit__(kind, value, trace)

    def started(self, store: ParameterStore) -> None:
        """Write the settings, hosts and software of this process, after a `gap` event if the log has a gap."""
        run = self._run
        if self._has_gap:
            self.write("gap", version=store.version)
        provenance = run.provenance if run.provenance is not None else provenance_of_one_process()
        self.write(
            "start",
            version=store.version,
            parameters=run.flat.num_parameters,
            weight_unit=run.task.weight_unit,
            pending=[arrival.batch for arrival in store.pending],
            data_fingerprint=run.task.fingerprint(),
            num_batches=run.task.num_batches(),
            **run.describe_strategy(),
            **provenance.to_json(),
        )

    def received(self, arrivals: Sequence[Arrival]) -> None:
        """Note the time of the arrivals."""
        now = self._clock.seconds
        self._received.update((arrival.batch, now) for arrival in arrivals)

    def updating(self) -> None:
        """Note the time when the update began."""
        self._updating_since = self._clock.seconds

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """Write the arrival with the reason of the refusal."""
        write_refused(self.log, self._clock.seconds, arrival, self._received.pop(arrival.batch), refusal)
        self.log.flush()

    def lost(self, worker: int, reason: str, returned: Sequence[int]) -> None:
        """Write who was lost, why, and which batches are given to others."""
        self.write("lost", worker=worker, reason=reason, batches=list(returned))

    def joined(self, worker: int) -> None:
        """Write who joined."""
        self.write("joined", worker=worker)

    def left(self, worker: int, returned: Sequence[int]) -> None:
        """Write who left, and which batches are given to others."""
        self.write("left", worker=worker, batches=list(returned))

    def updated(self, update: Update) -> None:
        """Write the arrivals of the update, then the update."""
        now = self._clock.seconds
        received = [self._received.pop(arrival.batch) for arrival in update.arrivals]
        write_update(self.log, now, update, received, now - self._updating_since)
        self.log.flush()

    def evaluated(self, result: EvaluationResult) -> None:
        """Write the evaluation."""
        fields = {key: value for key, value in asdict(result).items() if key != "seconds"}
        self.write("evaluation", **fields, snapshot_seconds=result.seconds)

    def write(self, event: str, **fields: Any) -> None:
        """Write an event with the present time."""
        self.log.write(event, self._clock.seconds, **fields)
        self.log.flush()

    def state(self) -> dict[str, Any]:
        """Return the position in the log, and the times of arrivals whose outcome is open."""
        mark = self.log.mark()
        return {"received": self._received, "log": [mark.num_bytes, mark.checksum]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the times of open arrivals; `continue_from` sets the position in the log."""
        self._received = {int(batch): seconds for batch, seconds in state["received"].items()}


def write_update(log: EventLog, seconds: float, update: Update, received: Sequence[float], update_seconds: float) -> None:
    """Write the arrivals of `update`, then the update, at `seconds` of training; `received`: seconds of each arrival."""
    for arrival, since in zip(update.arrivals, received, strict=True):
        outcome = {"version": update.version, "staleness": update.staleness(arrival)}
        log.write("arrival", seconds, **asdict(arrival), received_seconds=round(since, 6), **outcome)
    log.write(
        "update",
        seconds,
        version=update.version,
        arrivals=len(update.arrivals),
        weight=update.weight,
        loss=update.loss,
        learning_rate=update.learning_rate,
        gradient_norm=update.gradient_norm,
        update_seconds=round(update_seconds, 6),
    )


def write_refused(log: EventLog, seconds: float, arrival: Arrival, received: float, refusal: Refusal) -> None:
    """Write `arrival`, received at `received`, with the reason of the refusal, at `seconds` of training."""
    log.write("arrival", seconds, **asdict(arrival), received_seconds=round(received, 6), refused=refusal.value)
