"""The store's side of the protocol: a loop that drains slots, makes updates and publishes them.

What is written down about a run (events, snapshots, checkpoints) is the observer's; the loop only tells it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hvd_async.errors import HvdAsyncError, PeerError
from hvd_async.store.parameter_store import Arrival, ParameterStore, Refusal, Update
from hvd_async.store.serve.client import IDLE
from hvd_async.store.serve.liveness import Silence, is_alive
from hvd_async.store.wire import arrival_words
from hvd_async.store.wire.layout import (
    MAX_STATISTICS,
    NUM_PROVISIONAL,
    ArrivalWord,
    SlotWord,
    StopKind,
    StopNotice,
    StoreMemory,
    Word,
    WorkerState,
    WorkerWord,
)
from hvd_async.store.wire.slots import read_slot
from hvd_async.store.wire.stop import read_notice
from hvd_async.transport.block import word_to_float

# Between two looks: where bells wake the store it sleeps on, elsewhere it looks again soon.
_SLEEP_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 0.001
_NOTHING = (-1, 0)  # no version, no arrivals
# How often workers are looked after: a launcher may leave no more than a second to save what one that was killed leaves behind.
_LOOK_SECONDS = 0.1


class Observer(Protocol):
    """What is told of everything that happens to a store. Its methods return at once; slow work is done elsewhere."""

    def started(self, store: ParameterStore) -> None:
        """`store` is ready and workers begin; it stays the same object to the end of the run."""

    def received(self, arrivals: Sequence[Arrival]) -> None:
        """A push with `arrivals` has reached the store, which is about to decide on their fate."""

    def updating(self) -> None:
        """The store begins to make the next version."""

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """`arrival` is in no update."""

    def updated(self, update: Update) -> None:
        """The store has just made `update`; its parameters are those of that version until this returns."""

    def evaluated(self, version: int, statistics: Sequence[float]) -> None:
        """A worker evaluated the snapshot of `version`."""

    def num_evaluations_due(self) -> int:
        """Snapshots that are on disk and wait to be evaluated, or have been, since the start of this process."""

    def is_finished(self) -> bool:
        """Whether the run is to end before its data do: patience is exhausted, its time is over, or it has diverged."""

    def ended(self, notice: StopNotice | None) -> None:
        """No more updates will be made; `notice` is why, None when the data ended. Blocks until all that is to outlive this
        process is saved."""

    def settle(self) -> None:
        """`store` is lost: finish writing what was handed over before. Blocks, and raises nothing."""

    def rescue(self, stop: StopNotice | None = None) -> None:
        """Another rank failed, and `store` is whole: save it. Blocks, and raises nothing. `stop`: the run was asked to stop, and
        counts as stopped."""


@dataclass(frozen=True)
class ServerOptions:
    """What the loop has to know beside the store's own rules."""

    last_version: int | None = None
    first_evaluation: int = 0
    evaluate_every: int = 0
    worker_timeout_seconds: float = 600.0
    stop_timeout_seconds: float = 60.0
    near_workers: frozenset[int] = frozenset()
    """Workers of the store's host, whose processes can be looked at."""


class StopTimeoutError(PeerError):
    """The run was asked to stop, and some ranks did not answer; the others' work can be saved."""


class StoreServer:
    """Serves one run. Used by one thread of the store's rank; nothing here is collective."""

    def __init__(
        self,
        store: ParameterStore,
        memory: StoreMemory,
        observer: Observer,
        options: ServerOptions,
        touch: Callable[[], None] = lambda: None,
    ) -> None:
        """`store`, `memory` and `observer` are the server's until `serve` returns. The store's versions are made in the buffers
        of `memory`, the block of shard 0. `touch` is called in every turn of the loop: see `Heartbeat.touch`."""
        self._store = store
        self._memory = memory
        self._layout = memory.layout
        self._observer = observer
        self._options = options
        num_workers, num_slots = self._layout.num_workers, self._layout.slots
        self._drained = [0] * num_slots
        self._freed = [0] * num_slots
        self._evaluated = [0] * num_workers
        self._present = set(range(num_workers))
        self._slot_of: dict[int, int] = {}  # of workers that pushed
        self._last_push: dict[int, int] = {}
        self._untold: list[Update] = []
        self._num_provisional = 0
        self._shown = _NOTHING
        self._drained_now: list[int] = []  # taken in, and their owners not yet told
        self._turn = 0
        self._touch = touch
        self._silences = {worker: Silence() for worker in range(num_workers)}
        self._processes: dict[int, int] = {}  # of near workers that were seen alive
        self._looked = 0.0
        self._stopping_since: float | None = None

    def serve(self, stop_requested: Callable[[], StopNotice | None]) -> StopNotice | None:
        """Serve until every worker has left, and return why they did: None when the data ended.

        `stop_requested` is asked in every turn; a notice from it is passed to the workers. Raises `PeerError` when a worker
        that is waited for gives no sign of life for the configured time, is dead, or announces its failure; the store is whole
        then, unless `is_state_lost`. Raises `StopTimeoutError` where not all answer a request to stop.
        """
        self._memory.store(Word.FIRST_EVALUATION, self._options.first_evaluation)
        self._memory.store(Word.EVALUATE_EVERY, self._options.evaluate_every)
        self._memory.store(Word.NEXT_VERSION, self._store.version)
        for slot in range(self._layout.slots):
            for word in (SlotWord.BASE_VERSION, SlotWord.NEXT_BASE_VERSION):
                self._set(slot, word, IDLE)  # nobody announces anything before the store is ready
        self._observer.started(self._store)
        self._publish()
        self._memory.store(Word.READY, 1)
        pause = 0.0
        while self._present:
            heard = self._memory.heard(Word.STORE_BELL)
            self._touch()
            self._look_for_life()
            notice = self._pass_on(stop_requested())
            busy = self._drain(notice) | self._take_evaluations()
            self._dismiss_those_who_left()
            if busy:
                pause = 0.0
                continue
            # Nothing came: leave the core to the workers.
            pause = _SLEEP_SECONDS if self._memory.has_bells else min(_LONGEST_POLL_SECONDS, pause + 0.00002)
            if self._present:
                self._memory.wait(Word.STORE_BELL, heard, pause)
        notice = self._notice()
        if not self._is_stopped(notice):
            self._memory.store(Word.NEXT_VERSION, self._store.version + 1)
            self._observer.updating()
            self._complete(self._store.finish())
            self._notify()
            self._memory.store(Word.NEXT_VERSION, self._store.version)
        self._observer.ended(notice)
        self.release()
        return notice

    def rescue(self, stop: StopNotice | None = None) -> None:
        """After a `HvdAsyncError` of `serve` that left the store whole: have it saved. See `Observer.rescue`."""
        try:
            self._tell_refused()
            self._notify()
        except HvdAsyncError:
            pass  # a file that could not be written is told already; what can be saved is
        self._observer.rescue(stop)

    def release(self) -> None:
        """Let the workers go, who wait until what is to outlive the run is saved."""
        self._memory.store(Word.SERVED, 1)
        self._ring_all()

    def _drain(self, notice: StopNotice | None) -> bool:
        """Offer every full slot to the store once, beginning with another one each time. Whether any was taken."""
        busy = False
        num_slots = self._layout.slots
        for slot in range(self._turn, self._turn + num_slots):
            version = self._store.version
            busy |= self._drain_slot(slot % num_slots, notice)
            busy |= self._advance()  # one that was held back for a straggler may be free now
            if self._drained_now and not self._store.makes_provisional():  # else once for all slots that are full
                self._tell_drained()
            self._notify()
            if self._store.version != version:
                notice = self._pass_on(None)  # it may have been the last: what the other slots hold came too late
        self._show_provisional()
        self._turn = (self._turn + 1) % num_slots
        return busy | self._free_what_is_wanted()

    def _drain_slot(self, slot: int, notice: StopNotice | None) -> bool:
        if self._get(slot, SlotWord.PUSHED) == self._drained[slot]:
            return False
        arrivals = self._arrivals(slot)
        if notice is not None and notice.kind is StopKind.FINISHED:
            self._observer.received(arrivals)
            self._store.refuse(arrivals, Refusal.AFTER_THE_END)
        elif self._store.admits(arrivals):
            self._observer.received(arrivals)
            largest = word_to_float(self._get(slot, SlotWord.LARGEST))
            self._store.accept(arrivals, read_slot(self._memory, self._layout, slot, largest))
        else:
            return False
        self._drained[slot] += 1
        for arrival in arrivals:
            self._slot_of[arrival.worker], self._last_push[arrival.worker] = slot, self._drained[slot]
        self._tell_refused()
        self._advance()
        self._free_slots()
        self._drained_now.append(slot)
        return True

    def _tell_drained(self) -> None:
        """Last: a worker that waits for this finds its own gradient in the parameters that it pulls next."""
        for slot in self._drained_now:
            self._set(slot, SlotWord.DRAINED, self._drained[slot])
            self._memory.ring(self._layout.slot_word(slot, SlotWord.BELL))
        self._drained_now.clear()

    def _show_provisional(self) -> None:
        """Make provisional parameters of all that is pending, for those who wait to pull."""
        if not self._drained_now:
            return
        pending = (self._store.version, len(self._store.pending))
        if self._store.makes_provisional() and pending != self._shown:  # the same where all that came was refused
            number = self._num_provisional + 1
            self._memory.store(Word.NEXT_PROVISIONAL, number)
            num_arrivals = self._store.make_provisional(number)
            self._memory.bring_out(self._layout.provisional_offset(number), 4 * self._layout.num_elements)
            self._free_slots()
            place = number % NUM_PROVISIONAL
            self._memory.store(Word.PROVISIONAL_VERSION + place, self._store.version)
            self._memory.store(Word.PROVISIONAL_ARRIVALS + place, num_arrivals)
            self._memory.store(Word.PROVISIONAL, number)
            self._num_provisional, self._shown = number, pending
        self._tell_drained()

    def _withdraw_provisional(self) -> None:
        """Of arrivals that were refused afterwards nobody is to read any more."""
        for place in range(NUM_PROVISIONAL):
            self._memory.store(Word.PROVISIONAL_VERSION + place, -1)
        self._shown = _NOTHING

    def _free_what_is_wanted(self) -> bool:
        """A worker may push again before its last gradient was read: it is read now."""
        wanted = (self._get(slot, SlotWord.WANTED) > self._drained[slot] for slot in self._store.held)
        if not any(wanted):
            return False
        self._store.flush()
        self._free_slots()
        return True

    def _free_slots(self) -> None:
        held = self._store.held
        for slot, drained in enumerate(self._drained):
            if self._freed[slot] != drained and slot not in held:
                self._freed[slot] = drained
                self._set(slot, SlotWord.FREED, drained)
                self._memory.ring(self._layout.slot_word(slot, SlotWord.BELL))

    def _tell_refused(self) -> None:
        for arrival, refusal in self._store.take_refused():
            self._observer.refused(arrival, refusal)
            self._release(arrival)

    def _release(self, arrival: Arrival) -> None:
        """Tell whoever pushed `arrival` that its fate is known."""
        if arrival.worker in self._slot_of:  # else it was pending in a checkpoint, and nobody waits
            slot = self._slot_of[arrival.worker]
            self._set(slot, SlotWord.RELEASED, self._last_push[arrival.worker])
            self._memory.ring(self._layout.slot_word(slot, SlotWord.BELL))

    def _arrivals(self, slot: int) -> list[Arrival]:
        num_arrivals = self._get(slot, SlotWord.NUM_ARRIVALS)
        sent_bytes = self._get(slot, SlotWord.SENT_BYTES)
        width, first = len(ArrivalWord), self._layout.arrival_word(slot, 0, 0)
        words = self._memory.load_words(first, width * num_arrivals)
        each = [words[width * number : width * (number + 1)] for number in range(num_arrivals)]
        push = each[0][ArrivalWord.BATCH]
        return [arrival_words.from_words(one, push, 0 if number else sent_bytes) for number, one in enumerate(each)]

    def _advance(self) -> bool:
        """Make the next version if it can be made. The store announces it first, so that no worker starts too late, and no
        reader of the buffer in which it is made is fooled."""
        following = self._store.version + 1
        if not self._store.is_complete() or self._is_being_read(following):
            return False
        self._memory.store(Word.NEXT_VERSION, following)
        if self._is_being_read(following):  # asked for just now: whoever did may not have seen what was announced
            self._memory.store(Word.NEXT_VERSION, self._store.version)
            return False
        self._observer.updating()
        update = self._store.advance(self._under_way())
        if update is None and not self._store.pending:  # the sum is not finite: there is no next version yet
            self._memory.store(Word.NEXT_VERSION, self._store.version)
            self._withdraw_provisional()
        self._complete(update)
        # Asked again: until the new version was out, a worker may have announced the one before.
        under_way = self._under_way()
        if (
            self._layout.arrivals_per_slot > 1
        ):  # the members of a team may be on any version since the oldest that it announces
            under_way += range(min(under_way, default=self._store.version), self._store.version)
        self._store.keep_base_versions(under_way)
        return update is not None

    def _is_being_read(self, following: int) -> bool:
        """Whether a worker that could not read fast enough has asked for the buffer in which version `following` is made."""
        held = following - self._layout.num_buffers + 1
        return held > 0 and any(self._get_of(worker, WorkerWord.READING) == held for worker in self._present)

    def _complete(self, update: Update | None) -> None:
        self._tell_refused()
        if update is None:
            self._free_slots()  # what was refused is not held any more
            return
        self._untold.append(update)  # first: whatever fails here, the observer hears of it before anything is saved
        self._publish()
        for arrival in update.arrivals:
            self._release(arrival)
        self._free_slots()
        self._ring_all()

    def _notify(self) -> None:
        """Tell of what was made: after the workers know, since the observer may copy all vectors."""
        if not self._untold:
            return
        while self._untold:
            self._observer.updated(self._untold.pop(0))
            self._touch()
        self._memory.store(Word.EVALUATIONS_DUE, self._observer.num_evaluations_due())

    def _publish(self) -> None:
        """Say that the newest version is out; it was made in its place."""
        self._memory.bring_out(self._layout.published_offset(self._store.version), 4 * self._layout.num_elements)
        self._memory.store(Word.VERSION, self._store.version)

    def _under_way(self) -> list[int]:
        """Base versions of gradients that are being computed or wait in slots."""
        versions = []
        for slot in range(self._layout.slots):
            # In this order: a worker fills its slot before it announces another version.
            for word in (SlotWord.BASE_VERSION, SlotWord.NEXT_BASE_VERSION):
                announced = self._get(slot, word)
                if announced != IDLE:
                    versions.append(announced)
            if self._get(slot, SlotWord.PUSHED) != self._drained[slot]:
                versions.append(self._get(slot, SlotWord.PUSHED_BASE_VERSION))
        return versions

    def _take_evaluations(self) -> bool:
        self._memory.store(Word.EVALUATIONS_DUE, self._observer.num_evaluations_due())
        busy = False
        for worker in self._present:
            if self._get_of(worker, WorkerWord.EVALUATED) == self._evaluated[worker]:
                continue
            words = self._memory.load_words(self._layout.worker_word(worker, WorkerWord.STATISTICS), MAX_STATISTICS)
            version = self._get_of(worker, WorkerWord.EVALUATED_VERSION)
            self._evaluated[worker] += 1
            taken = self._layout.worker_word(worker, WorkerWord.EVALUATION_TAKEN)
            self._memory.store(taken, self._evaluated[worker])
            self._observer.evaluated(version, [word_to_float(word) for word in words])
            busy = True
        return busy

    def _dismiss_those_who_left(self) -> None:
        for worker in sorted(self._present):
            if self._get_of(worker, WorkerWord.STATE) != WorkerState.LEFT:
                continue
            notice = self._notice()  # read now: a worker that leaves because of it has set it before
            if self._has_undrained(worker) and not self._is_stopped(notice):
                continue  # its last gradient first
            if self._get_of(worker, WorkerWord.EVALUATED) != self._evaluated[worker]:
                continue
            self._present.discard(worker)
            # A run that is stopped will be resumed with all its workers: nothing is applied because one left.
            if not self._is_stopped(notice):
                self._store.leave(worker)
                self._advance()
                self._notify()

    def _has_undrained(self, worker: int) -> bool:
        """Whether a gradient of `worker` waits in a slot."""
        for slot in range(self._layout.slots):
            if self._get(slot, SlotWord.PUSHED) == self._drained[slot]:
                continue
            if any(arrival.worker == worker for arrival in self._arrivals(slot)):
                return True
        return False

    def _pass_on(self, requested: StopNotice | None) -> StopNotice | None:
        """The run's stop notice, set by this or another rank; sets it where the run is to end."""
        notice = self._notice()
        is_last = self._options.last_version is not None and self._store.version >= self._options.last_version
        if notice is None and requested is None and (is_last or self._observer.is_finished()):
            requested = StopNotice(StopKind.FINISHED, rank=0)
        if notice is None and requested is not None:
            before = self._memory.compare_swap(Word.STOP, 0, requested.to_word())  # who asked first is heard
            notice = StopNotice.from_word(before) or requested
        if self._is_stopped(notice) and self._stopping_since is None:
            self._stopping_since = time.monotonic()
        return notice

    def _notice(self) -> StopNotice | None:
        return read_notice(self._memory)

    @staticmethod
    def _is_stopped(notice: StopNotice | None) -> bool:
        return notice is not None and not notice.is_end

    def _look_for_life(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        for worker in sorted(self._present):
            silence = self._silences[worker].seconds(self._get_of(worker, WorkerWord.HEARTBEAT))
            if silence > self._options.worker_timeout_seconds:
                raise PeerError(
                    f"worker {worker} gave no sign of life for {silence:.0f} s (strategy.worker_timeout_seconds); it is dead,"
                    " stopped or starved of a core, or a step lasted longer than strategy.hang_timeout_seconds"
                )
            if worker in self._options.near_workers:
                self._look_at_process(worker)
        limit = self._options.stop_timeout_seconds
        if self._stopping_since is not None and now - self._stopping_since > limit:
            silent = ", ".join(map(str, sorted(self._present)))
            raise StopTimeoutError(
                f"worker {silent} did not answer a request to stop for {limit:.0f} s (strategy.stop_timeout_seconds); what the"
                " store has is saved"
            )

    def _look_at_process(self, worker: int) -> None:
        process = self._processes.get(worker) or self._get_of(worker, WorkerWord.PROCESS)
        if process == 0:
            return
        if is_alive(process):
            self._processes[worker] = process
        elif worker in self._processes:  # else it counts its processes otherwise than this one, as in a container of its own
            raise PeerError(f"worker {worker} is dead: its process {process} is gone; what the store has is saved")

    def _ring_all(self) -> None:
        for slot in range(self._layout.slots):
            self._memory.ring(self._layout.slot_word(slot, SlotWord.BELL))

    def _get_of(self, worker: int, word: int) -> int:
        return self._memory.load(self._layout.worker_word(worker, word))

    def _get(self, slot: int, word: int) -> int:
        return self._memory.load(self._layout.slot_word(slot, word))

    def _set(self, slot: int, word: int, value: int) -> None:
        self._memory.store(self._layout.slot_word(slot, word), value)
