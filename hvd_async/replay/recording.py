"""A run as its event log describes it, in an order in which it can be computed again. Nothing is computed here."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hvd_async.config import RunConfig
from hvd_async.errors import DataError
from hvd_async.runs.event_log import read_events
from hvd_async.store.arrival import Arrival, Refusal

Event = Mapping[str, Any]

# Refused pushes on which nothing later depends: a gradient that is not finite leaves no trace, and one that came after
# the last
# version was the last of its worker in that process.
_WITHOUT_TRACE = {Refusal.NOT_FINITE, Refusal.AFTER_THE_END}


@dataclass(frozen=True)
class Process:
    """One `start` event: where the gradients that follow were computed."""

    number: int
    software: Event
    ranks: Sequence[Event]
    node_workers: Sequence[Sequence[int]]
    is_simulated: bool = False
    data: str | None = None
    """Fingerprint of the training data; None if it was not recorded."""

    def rank_of(self, worker: int | None) -> Event:
        """Return the rank of `worker`, or the rank that computed for all. None: the store's rank, or the first rank."""
        return next((rank for rank in self.ranks if rank["worker"] == worker), self.ranks[0])

    def software_of(self, worker: int | None) -> dict[str, Any]:
        """Return the software with which `worker` computed."""
        return {**self.software, **self.rank_of(worker).get("software", {})}

    def node_of(self, worker: int) -> int:
        """Return the number of the node group that has `worker`."""
        return next((number for number, workers in enumerate(self.node_workers) if worker in workers), 0)


@dataclass(frozen=True)
class Push:
    """Gradients that were sent as one, to be computed when the update that contains them is made.

    `sender` has one error of feedback: a worker, or a node group. `before`: earlier pushes of that sender in that process
    that were refused but left their trace in the error.
    """

    process: int
    sender: int
    arrivals: tuple[Arrival, ...]
    before: list[Push] = field(default_factory=list)

    @property
    def batch(self) -> int:
        """First batch. Claims rise, so the pushes of a sender in one process come in the order of their first batches."""
        return min(arrival.batch for arrival in self.arrivals)

    def with_those_before(self) -> Iterator[Push]:
        """Yield all pushes to send, in order; this one last."""
        yield from self.before
        yield self


@dataclass(frozen=True)
class RecordedUpdate:
    """An update and its pushes, in the order of summation."""

    version: int
    pushes: tuple[Push, ...]
    event: Event

    def to_send(self) -> Iterator[Push]:
        """Yield all pushes to send for the update, in order."""
        for push in self.pushes:
            yield from push.with_those_before()


@dataclass(frozen=True)
class Recording:
    """A run from version 0 on. `hashes` and `evaluations` are events, by version. `withdrawn`: versions on top of which a
    sum was refused, and with it the provisional parameters made from it."""

    processes: tuple[Process, ...]
    updates: tuple[RecordedUpdate, ...]
    hashes: Mapping[int, Sequence[Event]]
    evaluations: Mapping[int, Event]
    withdrawn: frozenset[int] = frozenset()


def read_recording(path: pathlib.Path, config: RunConfig) -> Recording:
    """Read the log `path` of the run that `config` describes. Raises `DataError` if the run cannot be computed again from
    it."""
    try:
        return _Reader(path, config).read()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{path}: an event is damaged, or from an older hvd_async ({type(error).__name__}: {error});"
            " expected the log of a run of this version"
        ) from None


class _Reader:
    """Reads all events once, then orders the pushes."""

    def __init__(self, path: pathlib.Path, config: RunConfig) -> None:
        self._path = path
        self._is_async = config.strategy.is_async
        self._sums = self._is_async and config.push.node_sum
        self._has_feedback = self._is_async and config.push.error_feedback
        self._processes: list[Process] = []
        self._updates: list[RecordedUpdate] = []
        self._hashes: dict[int, list[Event]] = {}
        self._evaluations: dict[int, Event] = {}
        self._withdrawn: set[int] = set()
        self._carried: dict[int, int] = {}  # batches pending in a checkpoint -> the process that computed their gradients
        self._applied: list[Arrival] = []
        self._refused: list[Arrival] = []
        self._sent: dict[tuple[int, int], list[Push]] = {}  # applied pushes, by process and sender
        self._lost: list[tuple[Push, int]] = []  # refused pushes, and how many of the same sender were certainly sent before

    def read(self) -> Recording:
        handle = {"start": self._start, "arrival": self._arrival, "update": self._update}
        for event in read_events(self._path):
            if not self._processes and event["event"] != "start":
                raise DataError(f"{self._path}: begins with {event['event']!r}, expected a `start` event of version 0")
            if event["event"] != "arrival":
                self._settle_refused()
            if event["event"] in handle:
                handle[event["event"]](event)
            elif event["event"] == "parameter_hash":
                self._hashes.setdefault(event["version"], []).append(event)
            elif event["event"] == "evaluation":
                self._evaluations[event["version"]] = event
        if not self._processes:
            raise DataError(f"{self._path}: contains no event; expected the log of a run")
        self._place_lost()
        return Recording(
            tuple(self._processes), tuple(self._updates), self._hashes, self._evaluations, frozenset(self._withdrawn)
        )

    def _start(self, event: Event) -> None:
        if missing := [name for name in ("software", "ranks", "node_workers", "pending") if name not in event]:
            raise DataError(
                f"{self._path}: a start event has no {missing[0]!r}: recorded by an older hvd_async, which"
                " did not record everything that replay needs"
            )
        if event["version"] != len(self._updates):
            raise DataError(
                f"{self._path}: a start event of version {event['version']} after {len(self._updates)}"
                f" updates, expected version {len(self._updates)}: the events before it are not in this"
                " log"
            )
        for batch in event["pending"]:
            self._carried.setdefault(batch, len(self._processes) - 1)
        number = len(self._processes)
        for rank in event["ranks"]:
            _ = rank["worker"], rank["threads"], rank["device"], rank["store_device"]
        is_simulated, data = event.get("simulated", False), event.get("data_fingerprint")
        self._processes.append(Process(number, event["software"], event["ranks"], event["node_workers"], is_simulated, data))

    def _arrival(self, event: Event) -> None:
        arrival = Arrival.from_json(event)
        for version, provisional in arrival.bases:
            oldest = 1 if provisional else 0  # there are no provisional parameters on top of version 0
            if not oldest <= version <= len(self._updates):
                raise DataError(
                    f"{self._path}: batch {arrival.batch}: got base version {version}, expected {oldest} to"
                    f" {len(self._updates)}, the versions that existed"
                )
        if event.get("refused") == Refusal.SUM_NOT_FINITE.value:
            self._withdrawn.add(len(self._updates))
        if "refused" not in event:
            self._settle_refused()
            self._applied.append(arrival)
        elif Refusal(event["refused"]) not in _WITHOUT_TRACE:
            if self._refused and self._refused[-1].push != arrival.push:
                self._settle_refused()
            self._refused.append(arrival)

    def _update(self, event: Event) -> None:
        version = event["version"]
        if version != len(self._updates) + 1 or event["arrivals"] != len(self._applied):
            raise DataError(
                f"{self._path}: the update of version {version} with {event['arrivals']} arrivals: got"
                f" {len(self._applied)} after version {len(self._updates)}; the log is damaged"
            )
        pushes = tuple(self._push(group) for group in _groups(self._applied))
        for push in pushes:
            self._sent.setdefault((push.process, push.sender), []).append(push)
        self._updates.append(RecordedUpdate(version, pushes, event))
        self._applied = []

    def _push(self, arrivals: Sequence[Arrival]) -> Push:
        process = self._processes[self._carried.get(arrivals[0].batch, len(self._processes) - 1)]
        worker = arrivals[0].worker
        return Push(process.number, process.node_of(worker) if self._sums else worker, tuple(arrivals))

    def _settle_refused(self) -> None:
        if not self._refused:
            return
        push = self._push(self._refused)
        self._lost.append((push, len(self._sent.get((push.process, push.sender), ()))))
        self._refused = []

    def _place_lost(self) -> None:
        """Assign every refused push that left a trace in error feedback to the next push of its sender.

        A refusal is recorded at once, an acceptance when its update is made. So acceptances recorded before a refusal
        were sent before it, and of the others those with earlier batches.
        """
        if not self._has_feedback:
            return
        for push, num_before in sorted(self._lost, key=lambda lost: lost[0].batch, reverse=True):
            sent = self._sent.get((push.process, push.sender), [])
            later = [each for each in sent[num_before:] if each.batch > push.batch]
            if later:
                later[0].before.insert(0, push)


def _groups(arrivals: Iterable[Arrival]) -> list[list[Arrival]]:
    """Return neighbouring arrivals that were pushed as one."""
    groups: list[list[Arrival]] = []
    for arrival in arrivals:
        if groups and groups[-1][0].push == arrival.push:
            groups[-1].append(arrival)
        else:
            groups.append([arrival])
    return groups


def repeated_batches(updates: Iterable[RecordedUpdate]) -> list[int]:
    """Return batches that are in more than one update, which exactly-once forbids."""
    seen = collections.Counter(a.batch for update in updates for push in update.pushes for a in push.arrivals)
    return sorted(batch for batch, count in seen.items() if count > 1)
