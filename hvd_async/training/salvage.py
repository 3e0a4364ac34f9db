"""The last state of a store whose process has died, saved as a checkpoint from the memory that it left."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hvd_async.config import RunConfig, load_config
from hvd_async.errors import CheckpointError, DataError
from hvd_async.runs.checkpoint import Checkpoint, checkpoint_folder, list_checkpoints, read_data, save_checkpoint
from hvd_async.runs.event_log import EventLog, LogMark, events_with_ends
from hvd_async.runs.events import write_refused, write_update
from hvd_async.runs.folder import RunFolder
from hvd_async.runs.snapshots import write_snapshot
from hvd_async.runs.totals import RunMetrics
from hvd_async.store.arrival import Arrival, Refusal, Update, total_weight
from hvd_async.store.ledger import BatchLedger
from hvd_async.store.optimizers.factory import state_names
from hvd_async.store.schedule import is_synchronous
from hvd_async.store.serve.journal import JournalState, Made, Received, read_journal
from hvd_async.store.shards.in_block import Left, shard_in
from hvd_async.store.shards.shard import Shard
from hvd_async.store.staleness import divisor
from hvd_async.store.wire.layout import Served, StoreMemory, Word
from hvd_async.store.wire.slots import parts_of_lengths, read_slot
from hvd_async.system import files
from hvd_async.vectors import arithmetic
from hvd_async.vectors.vector_map import VectorMap


@dataclass(frozen=True)
class Salvaged:
    """The `version` that was saved; the last checkpoint had `saved_version`, None if there was none."""

    version: int
    saved_version: int | None


def salvage(
    folder: RunFolder, memories: Sequence[StoreMemory], vector_map: VectorMap, *, is_measured: bool
) -> Salvaged | None:
    """Save the state of the store of the run in `folder`, whose process has died, from the `memories` of its shards,
    and complete the log. Nobody else uses either. `vector_map`: groups of parameters;
    `is_measured`: whether versions are evaluated.

    Return None if there is nothing to save: the store has saved its state, has not begun to serve, or keeps no journal. Raises
    `DataError` or `CheckpointError` if the folder cannot be read or written.
    """
    journal = read_journal(memories[0])
    if journal is None or memories[0].load(Word.SERVED) == Served.SAVED:
        return None
    config = load_config(folder.config)
    past = _read_past(folder, journal.started)
    if past.version > journal.version:
        raise DataError(f"{folder.root}: got version {past.version} there, expected {journal.version} as in memory, or less")
    shards = _shards(config, memories, vector_map, journal)
    _complete_step(config, shards, journal)
    with EventLog(folder.events, past.log) as log:
        for event in journal.events:
            past.add(event, log)
        past.check(folder, journal.version)
        log.write("store_lost", past.seconds_at(journal.ended), version=journal.version)
        mark = log.mark()
        log.sync()
    tensors, data = _state(config, shards, journal, past)
    if is_measured:
        past.note_snapshots(config, folder, lambda version: _evaluated(config, shards, memories, journal.version - version))
    recorder = past.recorder(journal, mark)
    document = {"data_fingerprint": past.fingerprint, "store": data, "recorder": recorder}
    buffers = folder.buffers_of_checkpoint(checkpoint_folder(folder.checkpoints, journal.version))
    kept = buffers.read_bytes() if buffers.exists() else None  # of a script, in a checkpoint that is replaced
    save_checkpoint(folder.checkpoints, journal.version, Checkpoint(tensors, document), config.training.keep_checkpoints)
    if kept is not None:
        files.write_file(buffers, kept)
    return Salvaged(journal.version, past.saved_version)


def _shards(config: RunConfig, memories: Sequence[StoreMemory], vector_map: VectorMap, journal: JournalState) -> list[Shard]:
    """Return the shards as they were left, with the pending gradients that are still in their slots added."""
    parts = parts_of_lengths(memory.layout.num_elements for memory in memories)
    left = Left(journal.version, journal.sum_place)
    shards = [
        shard_in(memory, part, vector_map, config.optimizer, config.strategy, left)
        for memory, part in zip(memories, parts, strict=True)
    ]
    for push in journal.pushes[len(journal.pushes) - journal.num_unread :]:
        base_version = min(each.arrival.base_version for each in push)
        number = divisor(config.strategy, journal.version - base_version)
        for shard, memory in zip(shards, memories, strict=True):
            shard.add(read_slot(memory, memory.layout, push[0].slot, 0.0), number)
    return shards


def _complete_step(config: RunConfig, shards: Sequence[Shard], journal: JournalState) -> None:
    """Complete the step that may have been begun, or else the pending sum."""
    order = journal.order
    if order is None:
        for shard in shards:
            shard.flush()
        return
    partials = [value for shard in shards for value in shard.step(order)]
    weight = total_weight([each.arrival for each in journal.pending], journal.weight)
    rate = config.optimizer.learning_rate * order.rate_factor
    journal.clip = order.clip
    journal.complete(order.version, rate, arithmetic.norm(partials), weight, journal.ended)


def _state(
    config: RunConfig, shards: Sequence[Shard], journal: JournalState, past: _Past
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return what `ParameterStore.state` would have returned."""
    pending = [each.arrival for each in journal.pending]
    keeps_pending = bool(pending) and not is_synchronous(config.strategy, journal.version)
    names = ["parameters", *state_names(config.optimizer)]
    ledger = past.ledger
    if keeps_pending:
        for arrival in pending:
            ledger.record(arrival.batch)
    else:
        names.remove("pending_sum")
    return {name: _whole(shards, name) for name in names}, {
        "version": journal.version,
        "weight": journal.weight,
        "clip": journal.clip,
        "pending": [asdict(arrival) for arrival in pending] if keeps_pending else [],
        "applied": {str(worker): count for worker, count in past.applied.items()},
        "refused": [[worker, reason.value, count] for (worker, reason), count in past.refused.items()],
        "ledger": ledger.to_json(),
    }


def _evaluated(config: RunConfig, shards: Sequence[Shard], memories: Sequence[StoreMemory], age: int) -> torch.Tensor | None:
    """Return the vector that is evaluated of the version that is `age` versions old; None if it is not there any more."""
    if config.optimizer.average_decay:
        return None if age else _whole(shards, "average")
    if age >= memories[0].layout.num_buffers:
        return None
    offsets = [memory.layout.published_offset(shard.version - age) for shard, memory in zip(shards, memories, strict=True)]
    return _joined([memory.vector(offset) for memory, offset in zip(memories, offsets, strict=True)])


def _whole(shards: Sequence[Shard], name: str) -> torch.Tensor:
    return _joined([shard.read(name) for shard in shards])


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Past:
    """The past of a run up to the death of its store: its last checkpoint, and the log since."""

    def __init__(self, saved: Mapping[str, Any] | None, log: LogMark, started: float) -> None:
        """`saved`: the data of the checkpoint, if there is one; `log`: the part of the log to keep. `started`: when the process
        that has died began to serve, as of `time.monotonic`."""
        self.log = log
        self._started = started
        store = None if saved is None else saved["store"]
        self._recorder: Mapping[str, Any] = {} if saved is None else saved["recorder"]
        self.fingerprint: str = "" if saved is None else saved["data_fingerprint"]
        self.saved_version: int | None = None if store is None else store["version"]
        self.version: int = 0 if store is None else store["version"]
        self.ledger = BatchLedger() if store is None else BatchLedger(**store["ledger"])
        self.applied = Counter({} if store is None else {int(worker): n for worker, n in store["applied"].items()})
        refused = [] if store is None else store["refused"]
        self.refused = Counter({(worker, Refusal(reason)): count for worker, reason, count in refused})
        if store is not None:
            self.ledger = self.ledger.without([fields["batch"] for fields in store["pending"]])
        self._metrics = RunMetrics.from_json(self._recorder["metrics"]) if saved is not None else RunMetrics()
        self._measurements: list[Mapping[str, Any]] = list(self._recorder.get("measurements", ()))
        self._received = {int(batch): seconds for batch, seconds in self._recorder.get("received", {}).items()}
        self._moments = {int(version): tuple(moment) for version, moment in self._recorder.get("moments", {}).items()}
        self._counts = Counter({kind: self._recorder.get(key, 0) for kind, key in _COUNTED.items()})
        # Each version since the checkpoint, the weight before it and with it, and the seconds.
        self._made: list[tuple[int, float, float, float]] = []
        self._weight: float = 0 if store is None else store["weight"]
        self._decided: set[int] = set()  # batches that the log has since the last start
        self._started_seconds = 0.0
        self._arrivals: list[Arrival] = []

    def seconds_at(self, when: float) -> float:
        """Return the seconds of training at `when`, as of `time.monotonic`."""
        return self._started_seconds + when - self._started

    def add(self, event: Received | Made, log: EventLog) -> None:
        """Count what the journal has and the log has not, and write it into the log."""
        if isinstance(event, Received):
            assert event.refusal is not None
            if event.arrival.batch in self._decided:
                return
            self._refuse(event.arrival, event.refusal)
            at = self._seconds_of(event)
            write_refused(log, at, event.arrival, at, event.refusal)
        elif event.update.version == self.version + 1:
            received = [self._seconds_of(each) for each in event.arrivals]
            seconds = self.seconds_at(event.time)
            write_update(log, seconds, event.update, received, 0.0)
            self._update(event.update, seconds)

    def check(self, folder: RunFolder, version: int) -> None:
        """Raise `DataError` if something is missing between the log and what the journal has up to `version`."""
        if self.version != version:
            raise DataError(
                f"{folder.events}: got version {self.version} as its last, expected one from which the memory goes on, up to"
                f" {version}: it was cut short or damaged"
            )

    def note_snapshots(self, config: RunConfig, folder: RunFolder, read: Callable[[int], torch.Tensor | None]) -> None:
        """Note which versions were to be evaluated. Those whose snapshots were not on disk yet are written, if `read` has their
        parameters; of others the run says that they were not measured."""
        measured = {each["version"] for each in self._measurements}
        for version, before, weight, seconds in self._made:
            if not config.validation.is_due(version, before, weight):
                continue
            self._moments.setdefault(version, (weight, seconds))
            if version in measured or folder.snapshot(version).exists():
                continue
            if (vector := read(version)) is not None:
                write_snapshot(folder, version, vector)

    def recorder(self, journal: JournalState, mark: LogMark) -> dict[str, Any]:
        """Return what the recorder would have saved."""
        pending = {each.arrival.batch: self._seconds_of(each) for each in journal.pending}
        return {
            "measurements": self._measurements,
            "seconds": self.seconds_at(journal.ended),
            **{key: self._counts[kind] for kind, key in _COUNTED.items()},
            "received": pending,
            "log": [mark.num_bytes, mark.checksum],
            "metrics": self._metrics.to_json(),
            "moments": self._moments,
        }

    def _seconds_of(self, received: Received) -> float:
        if received.time is None:
            return float(self._received[received.arrival.batch])
        return self.seconds_at(received.time)

    def look_at(self, event: Mapping[str, Any]) -> None:
        """Note what the last process had decided, whether the checkpoint has it or not."""
        if event["event"] == "start":
            self.fingerprint = event["data_fingerprint"]
            self._started_seconds = event["seconds"]
            self._decided.clear()
        elif event["event"] == "arrival":
            self._decided.add(event["batch"])

    def apply(self, event: Mapping[str, Any]) -> None:
        """Count an event of the log, which the checkpoint has not."""
        kind = event["event"]
        if kind in _COUNTED:
            self._counts[kind] += 1
        if kind == "arrival":
            arrival = Arrival.from_json(event)
            if "refused" in event:
                self._refuse(arrival, Refusal(event["refused"]))
            else:
                self._arrivals.append(arrival)
        elif kind == "update":
            arrivals, self._arrivals = tuple(self._arrivals), []
            update = Update(event["version"], arrivals, event["learning_rate"], event["gradient_norm"])
            self._update(update, event["seconds"])
        elif kind == "evaluation":
            self._measurements.append(
                {key: event[key] for key in ("version", "weight", "scores")} | {"seconds": event["snapshot_seconds"]}
            )

    def _update(self, update: Update, seconds: float) -> None:
        for arrival in update.arrivals:
            self.ledger.record(arrival.batch)
        self.version = update.version
        before, self._weight = self._weight, total_weight(update.arrivals, self._weight)
        self._made.append((update.version, before, self._weight, seconds))
        self.applied.update(arrival.worker for arrival in update.arrivals)
        self._metrics.add_update(update)

    def _refuse(self, arrival: Arrival, refusal: Refusal) -> None:
        if refusal is not Refusal.AFTER_THE_END:
            self.ledger.record(arrival.batch)
        self.refused[arrival.worker, refusal] += 1
        self._metrics.add_refused(arrival, refusal)


_COUNTED = {"start": "processes", "lost": "lost_workers", "joined": "joined_workers"}
"""Events that the recorder counts, and the names of the counts."""


def _is_unfinished(event: Mapping[str, Any]) -> bool:
    """Whether `event`, the last of a log, is to be written again: an arrival of an update that was being written, which the
    journal has, or the end of an earlier attempt to save."""
    return event["event"] == "store_lost" or (event["event"] == "arrival" and "refused" not in event)


def _read_past(folder: RunFolder, started: float) -> _Past:
    """Read the last checkpoint that fits the log, and the log. Raises `DataError` if the log lacks what the checkpoints have."""
    events = events_with_ends(folder.events)
    while events and _is_unfinished(events[-1][0]):
        events.pop()
    ends = {mark.num_bytes: mark for _, mark in events}
    # A resumed process whose checkpoint did not fit the log has written where the gap is.
    gaps = {event["version"]: mark for event, mark in events if event["event"] == "gap"}
    saved, mark, found = None, LogMark(), list_checkpoints(folder.checkpoints)
    for path in reversed(found):
        with contextlib.suppress(CheckpointError):  # damaged: the one before it and the log will do
            data = read_data(path).data
            at = LogMark(*data["recorder"]["log"])
            fitting = ends.get(at.num_bytes, LogMark()) == at
            if fitting or data["store"]["version"] in gaps:
                saved, mark = data, at if fitting else gaps[data["store"]["version"]]
                break
    if found and saved is None:
        raise DataError(f"{folder.events}: was cut short or damaged since {found[-1].name} was saved")
    past = _Past(saved, events[-1][1] if events else mark, started)
    for event, end in events:
        past.look_at(event)
        if end.num_bytes > mark.num_bytes:
            past.apply(event)
    return past
