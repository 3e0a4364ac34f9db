"""The store's side of the protocol: a loop that drains slots, makes updates and publishes them.

What is written down about a run (events, snapshots, checkpoints) is the journal's; the loop only tells it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hvd_async.errors import PeerError
from hvd_async.store.client import IDLE
from hvd_async.store.parameter_store import Arrival, ParameterStore, Refusal, Update
from hvd_async.transport.layout import (
    MAX_STATISTICS,
    StopKind,
    StopNotice,
    Word,
    WorkerState,
    WorkerWord,
    word_to_float,
)
from hvd_async.transport.window import StoreMemory

_LONGEST_SLEEP_SECONDS = 0.001


class Journal(Protocol):
    """What is told of everything that happens to a store. Its methods return at once; slow work is done elsewhere."""

    def started(self, store: ParameterStore) -> None:
        """`store` is ready and workers begin; it stays the same object to the end of the run."""

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """`arrival` is in no update."""

    def updated(self, update: Update) -> None:
        """The store has just made `update`; its parameters are those of that version until this returns."""

    def evaluated(self, version: int, statistics: Sequence[float]) -> None:
        """A worker evaluated the snapshot of `version`."""

    def num_evaluations_due(self) -> int:
        """Snapshots that are on disk and wait to be evaluated, or have been, since the start of this process."""

    def is_finished(self) -> bool:
        """Whether the run is to end before its data do: patience is exhausted."""


@dataclass(frozen=True)
class ServerOptions:
    """What the loop has to know beside the store's own rules."""

    last_version: int | None = None
    first_evaluation: int = 0
    evaluate_every: int = 0
    worker_timeout_seconds: float = 600.0


class StoreServer:
    """Serves one run. Used by one thread of the store's rank; nothing here is collective."""

    def __init__(self, store: ParameterStore, memory: StoreMemory, journal: Journal, options: ServerOptions) -> None:
        """`store`, `memory` and `journal` are the server's until `serve` returns."""
        self._store = store
        self._memory = memory
        self._journal = journal
        self._options = options
        num_workers = memory.layout.num_workers
        self._slots = [memory.vector(memory.layout.slot_offset(w)) for w in range(num_workers)]
        self._drained = [0] * num_workers
        self._evaluated = [0] * num_workers
        self._present = set(range(num_workers))
        self._turn = 0
        self._heartbeats = 0
        self._signs_of_life = {worker: (-1, time.monotonic()) for worker in range(num_workers)}

    def serve(self, stop_requested: Callable[[], StopNotice | None]) -> StopNotice | None:
        """Serve until every worker has left, and return why they did: None when the data ended.

        `stop_requested` is asked in every turn; a notice from it is passed to the workers. Raises `PeerError` when a worker
        that is waited for gives no sign of life for the configured time, or announces its failure.
        """
        self._memory.store(Word.FIRST_EVALUATION, self._options.first_evaluation)
        self._memory.store(Word.EVALUATE_EVERY, self._options.evaluate_every)
        self._memory.store(Word.NEXT_VERSION, self._store.version)
        self._journal.started(self._store)
        self._publish()
        pause = 0.0
        while self._present:
            self._beat()
            notice = self._pass_on(stop_requested())
            busy = self._drain(notice) | self._take_evaluations()
            self._dismiss_those_who_left()
            pause = 0.0 if busy else min(_LONGEST_SLEEP_SECONDS, pause + 0.00002)
            if pause:
                self._look_for_life()
                time.sleep(pause)  # nothing came: leave the core to the workers
        notice = self._notice()
        if not self._is_stopped_by_signal(notice):
            self._complete(self._store.finish())
        self._memory.store(Word.SERVED, 1)
        return notice

    def _drain(self, notice: StopNotice | None) -> bool:
        """Offer every full slot to the store once, beginning with another worker each time. Whether any was taken."""
        busy = False
        num_workers = len(self._slots)
        for worker in range(self._turn, self._turn + num_workers):
            version = self._store.version
            busy |= self._drain_slot(worker % num_workers, notice)
            busy |= self._advance()  # one that was held back for a straggler may be free now
            if self._store.version != version:
                notice = self._pass_on(None)  # it may have been the last: what the other slots hold came too late
        self._turn = (self._turn + 1) % num_workers
        return busy

    def _drain_slot(self, worker: int, notice: StopNotice | None) -> bool:
        if self._get(worker, WorkerWord.PUSHED) == self._drained[worker]:
            return False
        arrival = self._arrival(worker)
        if notice is not None and notice.kind is StopKind.FINISHED:
            self._store.refuse(arrival, Refusal.AFTER_THE_END)
        elif self._store.admits(arrival):
            self._store.accept([arrival], self._slots[worker])
        else:
            return False
        self._drained[worker] += 1
        self._tell_refused()
        self._advance()
        # Last: a worker that waits for this finds its own gradient in the version that it pulls next.
        self._set(worker, WorkerWord.DRAINED, self._drained[worker])
        return True

    def _tell_refused(self) -> None:
        for arrival, refusal in self._store.take_refused():
            self._journal.refused(arrival, refusal)
            self._set(arrival.worker, WorkerWord.RELEASED, self._drained[arrival.worker])

    def _arrival(self, worker: int) -> Arrival:
        return Arrival(
            worker=worker,
            batch=self._get(worker, WorkerWord.SLOT_BATCH),
            base_version=self._get(worker, WorkerWord.SLOT_BASE_VERSION),
            tokens=self._get(worker, WorkerWord.SLOT_TOKENS),
            loss=word_to_float(self._get(worker, WorkerWord.SLOT_LOSS)),
            step_seconds=word_to_float(self._get(worker, WorkerWord.SLOT_SECONDS)),
        )

    def _advance(self) -> bool:
        """Make the next version if it can be made. The store announces it first, so that no worker starts too late."""
        if not self._store.is_complete():
            return False
        self._memory.store(Word.NEXT_VERSION, self._store.version + 1)
        update = self._store.advance(self._under_way())
        if update is None and not self._store.pending:  # the sum is not finite: there is no next version yet
            self._memory.store(Word.NEXT_VERSION, self._store.version)
        self._complete(update)
        # Asked again: until the new version was out, a worker may have announced the one before.
        self._store.forget_base_versions(min(self._under_way(), default=self._store.version))
        return update is not None

    def _complete(self, update: Update | None) -> None:
        self._tell_refused()
        if update is None:
            return
        self._publish()
        for arrival in update.arrivals:
            self._set(arrival.worker, WorkerWord.RELEASED, self._drained[arrival.worker])
        self._journal.updated(update)
        self._memory.store(Word.EVALUATIONS_DUE, self._journal.num_evaluations_due())

    def _publish(self) -> None:
        version = self._store.version
        self._memory.store(Word.NEXT_VERSION, version)  # before the first byte: readers of the buffer's old version see it
        self._memory.put(self._memory.layout.published_offset(version), self._store.parameters)
        self._memory.store(Word.VERSION, version)
        self._beat()

    def _under_way(self) -> list[int]:
        """Base versions of gradients that are being computed or wait in slots."""
        versions = []
        for worker in self._present:
            # In this order: a worker fills its slot before it announces another version.
            announced = self._get(worker, WorkerWord.BASE_VERSION)
            if announced != IDLE and self._get(worker, WorkerWord.STATE) == WorkerState.ACTIVE:
                versions.append(announced)
            if self._get(worker, WorkerWord.PUSHED) != self._drained[worker]:
                versions.append(self._get(worker, WorkerWord.SLOT_BASE_VERSION))
        return versions

    def _take_evaluations(self) -> bool:
        self._memory.store(Word.EVALUATIONS_DUE, self._journal.num_evaluations_due())
        busy = False
        for worker in self._present:
            if self._get(worker, WorkerWord.EVALUATED) == self._evaluated[worker]:
                continue
            words = [self._get(worker, WorkerWord.STATISTICS + i) for i in range(MAX_STATISTICS)]
            version = self._get(worker, WorkerWord.EVALUATED_VERSION)
            self._evaluated[worker] += 1
            self._set(worker, WorkerWord.EVALUATION_TAKEN, self._evaluated[worker])
            self._journal.evaluated(version, [word_to_float(word) for word in words])
            busy = True
        return busy

    def _dismiss_those_who_left(self) -> None:
        for worker in sorted(self._present):
            if self._get(worker, WorkerWord.STATE) != WorkerState.LEFT:
                continue
            notice = self._notice()  # read now: a worker that leaves because of it has set it before
            if self._get(worker, WorkerWord.PUSHED) != self._drained[worker] and not self._is_stopped_by_signal(notice):
                continue  # its last gradient first
            if self._get(worker, WorkerWord.EVALUATED) != self._evaluated[worker]:
                continue
            self._present.discard(worker)
            # A run that a signal stops will be resumed with all its workers: nothing is applied because one left.
            if not self._is_stopped_by_signal(notice):
                self._store.leave(worker)
                self._advance()

    def _pass_on(self, requested: StopNotice | None) -> StopNotice | None:
        """The run's stop notice, set by this or another rank; sets it where the run is to end."""
        notice = self._notice()
        is_last = self._options.last_version is not None and self._store.version >= self._options.last_version
        if notice is None and requested is None and (is_last or self._journal.is_finished()):
            requested = StopNotice(StopKind.FINISHED, rank=0)
        if notice is None and requested is not None:
            self._memory.store(Word.STOP, requested.to_word())
            notice = requested
        if notice is not None and notice.kind is StopKind.FAILURE:
            raise PeerError(f"rank {notice.rank} failed; its message says why", is_reported=True)
        return notice

    def _notice(self) -> StopNotice | None:
        return StopNotice.from_word(self._memory.load(Word.STOP))

    @staticmethod
    def _is_stopped_by_signal(notice: StopNotice | None) -> bool:
        return notice is not None and notice.kind is StopKind.SIGNAL

    def _look_for_life(self) -> None:
        now = time.monotonic()
        for worker in self._present:
            heartbeat = self._get(worker, WorkerWord.HEARTBEAT)
            seen, since = self._signs_of_life[worker]
            if heartbeat != seen:
                self._signs_of_life[worker] = (heartbeat, now)
            elif now - since > self._options.worker_timeout_seconds:
                raise PeerError(
                    f"worker {worker} gave no sign of life for {now - since:.0f} s (strategy.worker_timeout_seconds); it is"
                    " dead or stopped, or a step or an evaluation takes longer than that"
                )

    def _beat(self) -> None:
        self._heartbeats += 1
        self._memory.store(Word.STORE_HEARTBEAT, self._heartbeats)

    def _get(self, worker: int, word: int) -> int:
        return self._memory.load(self._memory.layout.worker_word(worker, word))

    def _set(self, worker: int, word: int, value: int) -> None:
        self._memory.store(self._memory.layout.worker_word(worker, word), value)
