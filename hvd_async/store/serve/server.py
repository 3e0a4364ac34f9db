"""The store's side of the protocol: a loop that takes in pushes, makes versions and publishes them.

docs/protocol.md describes the protocol in the order of the writes here. The observer records the run (events, snapshots,
checkpoints); the loop only calls it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from hvd_async.errors import HvdAsyncError
from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.ledger import ClaimOrder
from hvd_async.store.observer import Observer
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.serve.evaluations import EvaluationDesk
from hvd_async.store.serve.journal import Journal
from hvd_async.store.serve.liveness import NO_GUESTS, Guests, WorkerWatch
from hvd_async.store.serve.lost_workers import LostWorkers
from hvd_async.store.serve.provisional import ProvisionalPublisher
from hvd_async.store.serve.returns import Returns
from hvd_async.store.serve.slot_book import SlotBook
from hvd_async.store.serve.stopping import StopDesk, is_stopped, is_too_late
from hvd_async.store.serve.vacancies import Vacancies
from hvd_async.store.wire import arrival_words
from hvd_async.store.wire.layout import Served, StoreMemory, Word, WorkerState, WorkerWord
from hvd_async.store.wire.slots import read_slot
from hvd_async.store.wire.stop import StopKind, StopNotice, read_stop
from hvd_async.transport.word_column import WordColumn

# Longest pauses between two looks at the slots: a sleep if bells wake the store, else a short poll.
_SLEEP_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 0.001


@dataclass(frozen=True)
class ServerOptions:
    """Parameters of the loop beyond the store's own rules."""

    last_version: int | None = None
    first_evaluation: int = 0
    evaluate_every: int = 0
    worker_timeout_seconds: float = 30.0
    hang_timeout_seconds: float = 3600.0
    stop_timeout_seconds: float = 60.0
    ended_workers: Callable[[], Collection[int]] = lambda: ()
    """Returns the workers of which MPI knows that they are dead."""
    guests: Guests = NO_GUESTS
    num_workers: int | None = None
    """Workers at the start, if the block has places for more, which may join later."""
    least_workers: int | None = None
    """The run goes on without workers that die while at least so many are left; None: it ends with the first."""
    is_only_store: bool = False
    """Whether no other rank has a part of the store."""
    num_batches: int | None = None
    claim_order: ClaimOrder = field(default_factory=ClaimOrder)
    slot_of: Callable[[int], int] = lambda worker: worker
    """Returns the slot of a worker, which the workers of a node may share."""


class StoreServer:
    """Serves one run. Used by one thread of the store's rank; no call is collective."""

    def __init__(
        self,
        store: ParameterStore,
        memory: StoreMemory,
        observer: Observer,
        options: ServerOptions,
        touch: Callable[[], None] = lambda: None,
    ) -> None:
        """`store`, `memory` and `observer` belong to the server until `serve` returns. The store makes its versions in the
        buffers of `memory`, the block of shard 0. `touch` is called in every turn of the loop: see `Heartbeat.touch`."""
        self._store = store
        self._memory = memory
        self._layout = memory.layout
        self._observer = observer
        self._options = options
        self._touch = touch
        num_workers = self._layout.num_workers
        self._present = set(range(num_workers if options.num_workers is None else options.num_workers))
        self._waiting: set[int] = set()  # workers of these that wait for batches that others return
        self._slots = SlotBook(memory, options.slot_of)
        self._returns = Returns(memory, options.claim_order, options.num_batches)
        self._unreported: list[Update] = []
        self._provisional = ProvisionalPublisher(store, memory)
        self._evaluations = EvaluationDesk(memory, observer)
        watch = WorkerWatch(
            memory,
            options.worker_timeout_seconds,
            options.hang_timeout_seconds,
            options.ended_workers,
            options.guests,
        )
        self._vacancies = Vacancies(memory, watch, lambda worker: self._slots.vacate(worker, store.pending))
        is_only = options.is_only_store
        self._lost = LostWorkers(memory, watch, options.least_workers, self._vacancies.joined, is_only_store=is_only)
        self._journal = Journal(store, memory)
        self._turn = 0
        self._stopping = StopDesk(memory, options.stop_timeout_seconds)
        self._states = WordColumn(memory, *self._layout.worker_column(WorkerWord.STATE), [WorkerState.ACTIVE] * num_workers)

    def serve(self, stop_requested: Callable[[], StopNotice | None]) -> StopNotice | None:
        """Serve until every worker has left, and return the reason: None when the data ended.

        `stop_requested` is called in every turn; a notice from it is passed to the workers. Raises `PeerError` if a worker
        that has not left shows no heartbeat for the configured time, is dead, or announces its failure; the store is then
        whole, unless `is_state_lost`. Raises `StopTimeoutError` if some workers do not answer a request to stop.
        """
        self._open()
        pause = 0.0
        while self._present:
            heard = self._memory.heard(Word.STORE_BELL)
            self._touch()
            self._welcome()
            self._lost.look(self._present)
            self._stopping.check(self._present)
            notice = self._pass_on(stop_requested())
            self._store.set_returned(self._returns.open())
            is_busy = self._serve_slots(notice) | self._evaluations.take(self._present)
            self._follow_workers()
            if is_busy:
                pause = 0.0
                continue
            # Nothing to do: leave the core to the workers.
            pause = _SLEEP_SECONDS if self._memory.has_bells else min(_LONGEST_POLL_SECONDS, pause + 0.00002)
            if self._present:
                self._memory.wait(Word.STORE_BELL, heard, pause)
        return self._close()

    def _open(self) -> None:
        """Publish the first version, and let the workers begin."""
        self._memory.store(Word.FIRST_EVALUATION, self._options.first_evaluation)
        self._memory.store(Word.EVALUATE_EVERY, self._options.evaluate_every)
        self._memory.store(Word.NEXT_VERSION, self._store.version)
        self._slots.open_all()
        self._observer.started(self._store)
        self._journal.begin()
        for worker in range(len(self._present), self._layout.num_workers):
            self._vacancies.offer(worker)
        self._publish()
        self._memory.store(Word.READY, 1)

    def _close(self) -> StopNotice | None:
        """Apply or drop the pending arrivals at the end of the data, have everything saved, and release the workers."""
        notice = read_stop(self._memory)
        if not is_stopped(notice):
            self._memory.store(Word.NEXT_VERSION, self._store.version + 1)
            self._observer.updating()
            is_pending = bool(self._store.pending)
            update = self._store.finish()
            if is_pending:
                self._write_down(update, Refusal.DROPPED_PENDING)
            self._announce_outcomes(update)
            self._report_updates()
            self._memory.store(Word.NEXT_VERSION, self._store.version)
        self._observer.ended(notice)
        self.release()
        return notice

    def rescue(self, stop: StopNotice | None = None) -> bool:
        """Have the store saved after a `HvdAsyncError` of `serve` that left the store whole: see `Observer.rescue`."""
        try:
            self._report_refused(self._store.take_refused())
            self._report_updates()
        except HvdAsyncError:
            pass  # the failure to write a file is already reported; save what can be saved
        return self._observer.rescue(stop)

    def release(self) -> None:
        """Release the workers, which wait until everything that is to outlive the run is saved."""
        self._memory.store(Word.SERVED, Served.SAVED)
        self._slots.ring_all()

    # --- The path of a gradient through the store. --------------------------------------------------------------------

    def _serve_slots(self, notice: StopNotice | None) -> bool:
        """Serve every slot with a push once, also a push that comes meanwhile, beginning with another slot each time; return
        whether there was anything to do."""
        is_busy, served = False, set[int]()
        slots = self._slots.with_news(self._turn) or [self._turn]  # a version that a reader delayed is due without a push
        while slots:
            for slot in slots:
                version = self._store.version
                is_busy |= self._serve_slot(slot, notice)
                if self._store.version != version:
                    notice = self._pass_on(None)  # after the last version, gradients in the other slots came too late
            served |= set(slots)
            slots = [slot for slot in self._slots.with_news(self._turn) if slot not in served]
        self._turn = (self._turn + 1) % self._layout.slots
        if not self._unreported:
            self._journal.settle()
        if self._slots.is_any_to_tell:
            if self._provisional.publish():  # with all arrivals taken in during this turn
                self._journal.read()
                self._slots.free(self._store.unread_slots)
            self._slots.tell_drained()
        return is_busy | self._free_wanted_slots()

    def _serve_slot(self, slot: int, notice: StopNotice | None) -> bool:
        """Take in the push in `slot`, make the version that it completes, and free the slot: the whole path of a push.

        The words appear in the order of docs/protocol.md; each is written when the work that it announces is done. Return
        whether there was anything to do.
        """
        arrivals = self._admitted(slot, notice)  # PUSHED has risen; a push that is not admitted stays in the slot
        if arrivals:
            self._take_in(slot, arrivals, notice)  # noted, and read as late as by the update; if refused: RELEASED
        is_made = self._make_version()  # NEXT_VERSION, the update, VERSION, RELEASED, FREED
        if not arrivals and not is_made:
            return False
        self._slots.free(self._store.unread_slots)  # FREED: if the gradient has been read by now, or is refused
        if not self._store.makes_provisional():
            self._slots.tell_drained()  # DRAINED: now, or after the provisional parameters of this turn are out
        self._report_updates()  # last: the observer may copy all vectors
        return True

    def _admitted(self, slot: int, notice: StopNotice | None) -> list[Arrival]:
        """Return the arrivals of the push that waits in `slot`; none if there is no push, or it may not be decided on
        yet."""
        arrivals = self._slots.arrivals(slot) if self._slots.waits(slot) else []
        if not arrivals:
            return []
        return arrivals if is_too_late(notice) or self._store.admits(arrivals) else []

    def _take_in(self, slot: int, arrivals: list[Arrival], notice: StopNotice | None) -> None:
        """Pass the push in `slot` to the store, which decides on it."""
        since = time.monotonic()
        self._observer.received(arrivals)
        for arrival in arrivals:
            self._let_come_back(arrival.worker)
        if is_too_late(notice):
            self._store.refuse(arrivals, Refusal.AFTER_THE_END)
        else:
            largest = arrival_words.read_largest(self._memory, slot)
            self._store.accept(arrivals, read_slot(self._memory, self._layout, slot, largest))
        refused = self._store.take_refused()
        self._journal.pushed(arrivals, slot, {arrival.batch: refusal for arrival, refusal in refused}, since)
        self._slots.take_in(slot, arrivals)
        self._report_refused(refused)

    def _make_version(self) -> bool:
        """Make the next version if its arrivals are complete and no reader or straggler delays it; return whether the
        arrivals were used up.

        NEXT_VERSION is announced before the first byte is written, so that readers detect torn copies, and workers do not
        start on a version that is about to be replaced.
        """
        following = self._store.version + 1
        if not self._store.is_complete() or self._is_being_read(following):
            return False
        self._memory.store(Word.NEXT_VERSION, following)
        if self._is_being_read(following):  # a reader asked just now, perhaps before it could see the announcement
            self._memory.store(Word.NEXT_VERSION, self._store.version)
            return False
        self._observer.updating()
        update = self._store.advance(self._slots.under_way() if self._store.needs_versions_under_way else ())
        is_refused = update is None and not self._store.pending  # the sum is not finite: no version was made
        if update is not None or is_refused:
            self._write_down(update, Refusal.SUM_NOT_FINITE)
        if is_refused:
            self._memory.store(Word.NEXT_VERSION, self._store.version)
            self._provisional.withdraw()
        self._announce_outcomes(update)
        self._keep_base_versions()
        return update is not None or is_refused

    def _write_down(self, update: Update | None, refusal: Refusal) -> None:
        """Write into the journal that the pending arrivals are in `update`, or were all refused: from now on that counts."""
        if update is not None:
            self._journal.updated(update)
        else:
            self._journal.discarded(refusal)

    def _announce_outcomes(self, update: Update | None) -> None:
        """Publish the version that `update` made, and tell the owners of slots the outcome of their arrivals."""
        self._report_refused(self._store.take_refused())
        if update is None:
            self._slots.free(self._store.unread_slots)  # refused gradients are not read any more
            return
        self._unreported.append(update)  # first: if something fails below, the observer still gets it before a save
        self._publish()
        for arrival in update.arrivals:
            self._slots.release(arrival)
        self._slots.free(self._store.unread_slots)
        self._slots.ring_all()

    def _publish(self) -> None:
        """Announce the newest version, which was made in the buffer where it is published."""
        self._memory.bring_out(self._layout.published_offset(self._store.version), 4 * self._layout.num_elements)
        self._memory.store(Word.VERSION, self._store.version)

    def _free_wanted_slots(self) -> bool:
        """Read gradients whose workers want to push again before an update reads them; return whether there were any."""
        if not self._slots.is_wanted(self._store.unread_slots):
            return False
        self._store.flush()
        self._journal.read()
        self._slots.free(self._store.unread_slots)
        return True

    def _report_refused(self, refused: Sequence[tuple[Arrival, Refusal]]) -> None:
        for arrival, refusal in refused:
            self._observer.refused(arrival, refusal)
            self._slots.release(arrival)

    def _report_updates(self) -> None:
        """Pass new updates to the observer, after the workers were told."""
        if not self._unreported:
            return
        while self._unreported:
            self._observer.updated(self._unreported.pop(0))
            self._touch()
        self._evaluations.announce()

    # --- What delays a version. ---------------------------------------------------------------------------------------

    def _is_being_read(self, following: int) -> bool:
        """Whether a slow reader has reserved the buffer in which version `following` is made."""
        reading = following - self._layout.num_buffers + 1
        return reading > 0 and any(self._get_of(worker, WorkerWord.READING) == reading for worker in self._present)

    def _keep_base_versions(self) -> None:
        """Free base parameters that no gradient needs any more."""
        if not self._store.needs_versions_under_way:
            return
        # Read again: until the new version was out, a worker may have announced the previous one.
        under_way = self._slots.under_way()
        if self._layout.arrivals_per_slot > 1:  # a node's workers may compute on any version since the oldest announced one
            under_way += range(min(under_way, default=self._store.version), self._store.version)
        self._store.keep_base_versions(under_way)

    # --- The end of a worker, and of the run. -------------------------------------------------------------------------

    def _follow_workers(self) -> None:
        """Note which workers have left, wait for batches that others return, or compute again."""
        unusual = {*self._states.changed(), *self._lost.dead, *self._waiting}
        for worker in sorted(self._present & unusual):
            if worker in self._lost.dead and not self._can_go(worker):
                continue
            state = WorkerState.LEFT if worker in self._lost.dead else self._get_of(worker, WorkerWord.STATE)
            notice = read_stop(self._memory)  # read after STATE: if the worker left because of a notice, it is visible now
            if state == WorkerState.ACTIVE:
                self._let_come_back(worker)
                continue
            if state not in (WorkerState.LEFT, WorkerState.WAITING):
                continue
            if self._slots.has_waiting(worker) and not is_stopped(notice):
                continue  # take in its last gradient first
            if self._evaluations.has_open(worker) and worker not in self._lost.dead:
                continue
            if state == WorkerState.LEFT:
                self._present.discard(worker)
                if worker in self._lost.dead:
                    self._close_slot_of(worker)
                returned = self._returns.take_from(worker, self._has_arrived) if notice is None else []
                if worker in self._lost.dead:
                    self._vacancies.note_gone(worker)
                    self._observer.lost(worker, self._lost.dead[worker], returned)
                elif worker in self._vacancies.joined:
                    self._vacancies.note_gone(worker)
                    if notice is None and not self._memory.load(Word.NOTHING_OPEN):  # others go on
                        self._observer.left(worker, returned)
            # A stopped run will be resumed with all its workers, so the departure of one must not complete an update.
            if not is_stopped(notice) and worker not in self._waiting:
                self._store.leave(worker)
                self._store.set_returned(self._returns.open())
                self._make_version()
                self._report_updates()
            if state == WorkerState.WAITING:
                self._waiting.add(worker)
            else:
                self._waiting.discard(worker)
        self._returns.find_lost_claims(self._present, self._has_arrived)
        if self._returns.give():
            self._slots.ring_all()
        self._say_if_nothing_is_open()

    def _can_go(self, worker: int) -> bool:
        """Dismiss `worker`, which is dead or must count so; return whether nothing of it can come into its slot any more, except
        from itself."""
        self._lost.dismiss(worker)
        slot = self._options.slot_of(worker)
        if self._others_live(slot):
            return self._lost.is_settled(worker, slot)
        return not self._slots.waits(slot) or is_stopped(read_stop(self._memory))

    def _others_live(self, slot: int) -> bool:
        """Whether a worker uses `slot` that is not dead."""
        return any(self._options.slot_of(worker) == slot for worker in self._present - self._lost.dead.keys())

    def _close_slot_of(self, worker: int) -> None:
        """Ignore the slot of `worker`, which is dismissed, from now on, unless others use it."""
        slot = self._options.slot_of(worker)
        if not self._others_live(slot):
            self._slots.close(slot)

    # --- Workers that join. -------------------------------------------------------------------------------------------

    def _welcome(self) -> None:
        """Count workers that have joined, and offer places that are free."""
        if not self._vacancies.is_any or is_stopped(read_stop(self._memory)):
            return  # a stopped run will be resumed with the workers of its start
        for worker in self._vacancies.take_joined():
            self._lost.replace(worker)
            self._present.add(worker)
            self._store.come_back(worker)
            self._vacancies.welcome(worker)
            self._slots.reopen(worker)
            self._observer.joined(worker)
        self._vacancies.look()

    def _has_arrived(self, batch: int) -> bool:
        """Whether the gradient of `batch` is in a slot, or has been decided on."""
        return self._slots.has_batch(batch) or batch in self._store.ledger

    def _let_come_back(self, worker: int) -> None:
        """Count `worker` again, if it was waiting for batches: it has got one."""
        if worker in self._waiting:
            self._waiting.discard(worker)
            self._store.come_back(worker)

    def _say_if_nothing_is_open(self) -> None:
        """Release the workers that wait for batches, once no worker is left that could return one.

        A worker that takes a batch becomes active before: so first the batches are read, then the states, then the slots."""
        if not self._waiting or self._waiting != self._present or not self._returns.is_nothing_open():
            return
        if self._lost.is_any_dismissed:
            self._returns.look_again()
            if self._returns.find_lost_claims(self._present, self._has_arrived) or not self._returns.is_nothing_open():
                return
        states = {self._get_of(worker, WorkerWord.STATE) for worker in self._present}
        if states == {WorkerState.WAITING} and not any(map(self._slots.has_waiting, self._present)):
            self._memory.store(Word.NOTHING_OPEN, 1)
            self._slots.ring_all()

    def _pass_on(self, requested: StopNotice | None) -> StopNotice | None:
        """Return the run's stop notice; set it if `requested`, or if the run is to end."""
        is_last = self._options.last_version is not None and self._store.version >= self._options.last_version
        if requested is None and (is_last or self._observer.is_finished()):
            requested = StopNotice(StopKind.FINISHED, rank=0)
        return self._stopping.pass_on(requested)

    # --- Words of the block. ------------------------------------------------------------------------------------------

    def _get_of(self, worker: int, word: int) -> int:
        return self._memory.load(self._layout.worker_word(worker, word))
