"""A worker's side of the protocol: claim, push, pull, wait, leave. Works with every implementation of `Window`."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from hvd_async.config import PushConfig
from hvd_async.store.arrival import Arrival
from hvd_async.store.ledger import ClaimOrder
from hvd_async.store.serve.claims import Claims
from hvd_async.store.serve.dismissals import Dismissals
from hvd_async.store.serve.liveness import Periodic, wait_until, watch_store
from hvd_async.store.serve.readings import NO_BASE, Base, Readings
from hvd_async.store.wire import arrival_words, evaluation_words
from hvd_async.store.wire.layout import (
    IDLE,
    SlotWord,
    StoreWindow,
    Word,
    WorkerState,
    WorkerWord,
)
from hvd_async.store.wire.slots import SlotWriter, parts_of_lengths
from hvd_async.store.wire.stop import StopNotice, read_stop

# Longest interval between polls of the store, which may be on another node, by a worker that no bell wakes.
_LONGEST_POLL_SECONDS = 0.002
_LOOK_AROUND_SECONDS = 0.01
# Number of torn copies, overwritten by newer versions, after which the worker asks the store to wait for this reader.
_MAX_TORN = 2


@dataclass(frozen=True)
class ClientOptions:
    """Rules of the store that a worker must know."""

    waits_for_stragglers: bool = False  # max_staleness with `wait`: do not start on a version that is about to be replaced
    announces: bool = True  # whether the store needs the versions under way, for a bound that waits or for base parameters
    store_timeout_seconds: float = 60.0
    claim_order: ClaimOrder = field(default_factory=ClaimOrder)
    push: PushConfig = field(default_factory=PushConfig)
    leave_requested: Callable[[], bool] = lambda: False
    """Whether this worker is to leave, and the others to go on."""
    pulls_provisional: bool = False  # pull provisional parameters on top of the newest version, if there are any


class StoreClient:
    """One worker's access to the store. Used by one thread; no call is collective.

    Every method that waits raises `PeerError` if the store shows no heartbeat for `store_timeout_seconds`, or if a rank has
    announced a failure.
    """

    def __init__(
        self,
        windows: Sequence[StoreWindow],
        worker: int,
        options: ClientOptions,
        slot: int | None = None,
        errors: Sequence[torch.Tensor] = (),
        touch: Callable[[], None] = lambda: None,
    ) -> None:
        """`windows[k]` reaches shard k. `worker`: 0 to num_workers - 1, each used by one client. Pushes go into `slot`, by
        default `worker`; several clients may share a slot in turn. `error` ([size] float32, zeros) is the error feedback of
        the slot; by default, the client has its own. `touch` is called at every operation: see `Heartbeat.touch`.
        """
        self._windows = windows
        self._window = windows[0]
        self._layout = self._window.layout
        self._worker = worker
        self._slot = worker if slot is None else slot
        self._options = options
        self._parts = parts_of_lengths(window.layout.num_elements for window in windows)
        self._writer = SlotWriter(windows, self._parts, options.push, errors)
        self._base = NO_BASE
        self._pushed = self._window.load(self._layout.slot_word(self._slot, SlotWord.PUSHED))
        self._freed = -1
        self._under_way = IDLE
        self._has_next_base = False
        self._touch = touch
        self._look: Callable[[], None] = lambda: None
        self._reported = self._get(WorkerWord.EVALUATED)
        self._readings = Readings(self._window, worker)
        self.dismissals = Dismissals(self._window, worker, self._slot)
        """What is known of workers without which the run goes on."""
        self._claims = Claims(self._window, worker, options.claim_order)

    @property
    def version(self) -> int:
        """Version of the last `pull`; -1 before the first."""
        return self._base.version

    @property
    def base(self) -> Base:
        """Base of the parameters that the last `pull` returned."""
        return self._base

    def join(self, is_late: bool = False) -> bool:
        """Announce this worker to the store, and wait until the store has published its first version.

        `is_late`: this worker has taken a place in a run under way, and waits until the store counts it. Return False if the run
        has ended first.
        """
        self._set(WorkerWord.STATE, WorkerState.ACTIVE)
        self._window.ring(Word.STORE_BELL)
        self._wait(lambda: self._window.load(Word.READY) != 0)
        if is_late:
            self._wait(lambda: self._get(WorkerWord.WELCOME) != 0 or self._window.load(Word.SERVED) != 0)
        return not is_late or self._get(WorkerWord.WELCOME) != 0

    def wait_noted(self) -> None:
        """Wait after `leave`, in a run that goes on, until the store has noted it; only of a worker that joined late."""
        self._wait(lambda: self._get(WorkerWord.WELCOME) == 0 or self._window.load(Word.SERVED) != 0)

    def leave(self, is_slot_shared: bool = False) -> None:
        """Tell the store that this worker will push no more. A gradient in the slot still counts; batches that it holds go to
        other workers.

        `is_slot_shared`: other workers continue to use the slot.
        """
        if not is_slot_shared:
            self.idle()
        self._set(WorkerWord.STATE, WorkerState.LEFT)
        self._window.ring(Word.STORE_BELL)

    def take_over(self, base: Base) -> None:
        """Use the slot that another worker, which held `base`, used until now."""
        self._pushed = self._get_slot(SlotWord.PUSHED)
        self._freed = -1
        self._base = base
        if self._options.announces:
            self._has_next_base = self._get_slot(SlotWord.NEXT_BASE_VERSION) != IDLE

    def idle(self) -> None:
        """Tell the store that no gradient is under way for this slot, except one in the slot."""
        self._under_way = IDLE
        self._announce_base(IDLE)
        self._withdraw_next_base()

    def keep_announced(self, version: int) -> None:
        """Keep `version` announced during pushes and pulls: a gradient on it is being computed meanwhile."""
        self._under_way = version

    def claim(self) -> int:
        """Return the number of the next batch, which no other worker gets while this one lives and has neither pushed it nor
        `let_go`. At most `MAX_HELD` are held at a time. Does not block."""
        return self._claims.claim()

    def let_go(self, batch: int) -> None:
        """Hold `batch`, which was claimed, no more: there is none of this number."""
        self._claims.let_go(batch)

    def note_pushed(self, batch: int) -> None:
        """Hold `batch` no more, if this worker does: another worker of the node has pushed it."""
        self._claims.note_pushed(batch)

    def wait_for_returned(self, stop_requested: Callable[[], StopNotice | None]) -> int | None:
        """Wait, when there are no more batches, for one that another worker returns; return it, or None if there cannot be any,
        or the run stops. Others do not wait for this worker meanwhile, which must have called `idle`."""
        batch, is_over = None, False
        while batch is None and not is_over:
            self.rest(stop_requested)
            batch, is_over = self.take_returned()
        return batch

    def rest(self, stop_requested: Callable[[], StopNotice | None], look_around: Callable[[], None] = lambda: None) -> None:
        """Wait until a batch is returned, none can be, or the run stops. Others do not wait for this worker from now on until
        `take_returned`. `look_around` is called from time to time."""

        def is_over() -> bool:
            requested = stop_requested()
            if requested is not None:
                self.request_stop(requested)
            given, taken = self._window.load_words(Word.GIVEN_AGAIN, 2)
            is_over = taken < given or self._window.load(Word.NOTHING_OPEN) != 0
            return self.stop_notice() is not None or is_over or self._options.leave_requested()

        self._set(WorkerWord.STATE, WorkerState.WAITING)
        self._window.ring(Word.STORE_BELL)
        self._wait(is_over, look_around)

    def take_returned(self) -> tuple[int | None, bool]:
        """Take a batch that another worker returned after `rest`, and be waited for again. Return the batch, or None, and
        whether the run stops or no batch can be returned any more; if neither, `rest` again."""
        # Before the batch is taken: the store decides that nothing is open only while all workers wait.
        self._set(WorkerWord.STATE, WorkerState.ACTIVE)
        if self.stop_notice() is not None or self._options.leave_requested():
            return None, True
        batch = self._claims.claim_returned()
        if batch is not None:
            return batch, False
        is_over = self._window.load(Word.NOTHING_OPEN) != 0
        if not is_over:
            self._set(WorkerWord.STATE, WorkerState.WAITING)
        return None, is_over

    def push(self, gradient: torch.Tensor, arrivals: Sequence[Arrival]) -> None:
        """Write `gradient` and its description into the slot, waiting until the slot is free.

        `gradient` ([size], float32, on a device that the windows accept) is the caller's again on return. It is the sum of
        the gradients of `arrivals`, which must not be more than the slot has room to describe.
        """
        self._touch()
        self.dismissals.check()
        if self._freed != self._pushed and not self._is_free():
            self._set_slot(SlotWord.WANTED, self._pushed + 1)
            self._window.ring(Word.STORE_BELL)
            self._wait(self._is_free)
        sent = self._writer.write(gradient, self._slot, self._pushed)
        arrival_words.write_push(self._window, self._slot, arrivals, sent)
        for window in self._windows:  # after all writes, so that transfers to several shards overlap
            window.flush()
        self._pushed += 1
        self._set_slot(SlotWord.PUSHED, self._pushed)  # last: the store reads the rest only after this
        self.announce_pushed()
        for arrival in arrivals:
            self._claims.note_pushed(arrival.batch)

    @property
    def num_pushed(self) -> int:
        """Number of the last push into the slot."""
        return self._pushed

    def announce_pushed(self) -> None:
        """Announce what is under way after a push, which another worker of the slot may have made that died then."""
        # After PUSHED, so that at every moment the gradient counts as under way: as announced, or as in the slot.
        self._announce_base(self._under_way)
        self._withdraw_next_base()
        self._window.ring(Word.STORE_BELL)

    @property
    def is_remote(self) -> bool:
        """Whether a push of this worker travels over a network."""
        return any(window.is_remote for window in self._windows)

    @contextlib.contextmanager
    def looking(self, look: Callable[[], None]) -> Iterator[None]:
        """Call `look` from time to time in every wait inside the block."""
        before, self._look = self._look, look
        try:
            yield
        finally:
            self._look = before

    def wait_drained(self) -> None:
        """Wait until the store has taken the last gradient in and, if it completed an update, published the new version."""
        self._wait(self._is_drained)

    def wait_released(self) -> bool:
        """Wait until the outcome of all pushed gradients is known, as lock-step requires; return False if the run is stopped
        before its end first."""
        released = False

        def is_over() -> bool:
            nonlocal released
            released = self._get_slot(SlotWord.RELEASED) == self._pushed
            notice = self.stop_notice()
            return released or (notice is not None and not notice.is_end)

        self._wait(is_over)
        return released

    def pull(self, parameters: torch.Tensor) -> int:
        """Copy the newest version into `parameters` ([size], float32, on a device that the windows accept); return its
        number.

        With `pulls_provisional`, copy the provisional parameters on top of the version if there are any. `base` describes
        the result. The copy is never torn: all elements belong to `base`. If `parameters` are up to date already, nothing is
        copied, so the caller must pass what the last pull left.
        """
        self._touch()
        may_be_provisional = self._options.pulls_provisional
        for num_torn in itertools.count():
            version = self._announce()
            base = self._readings.newest_base(version) if may_be_provisional else Base(version)
            if base is None:
                continue
            if base == self._base:
                return version
            self._base = NO_BASE  # even a torn copy overwrites the previous parameters
            is_reserved = num_torn >= _MAX_TORN
            if is_reserved and not self._readings.reserve(version):
                continue
            for window, part in zip(self._windows, self._parts, strict=True):
                layout = window.layout
                is_version = base.provisional == 0
                offset = layout.published_offset(version) if is_version else layout.provisional_offset(base.number)
                window.get(offset, parameters[part])
            is_whole = self._readings.is_whole(base)
            if is_reserved:
                self._readings.release()
            if is_whole:
                self._base = base
                return version
            self._touch()
            may_be_provisional = False  # the store makes provisional parameters faster than this worker reads them
        raise AssertionError("unreachable")

    def wait_for_end(self, stop_requested: Callable[[], StopNotice | None]) -> StopNotice | None:
        """Wait after `leave` until the store has ended the run, and return the reason. Passes on a request to stop
        meanwhile."""

        def is_over() -> bool:
            requested = stop_requested()
            if requested is not None:
                self.request_stop(requested)
            return self._window.load(Word.SERVED) != 0

        self._wait(is_over)
        return self.stop_notice()

    def stop_notice(self) -> StopNotice | None:
        """Return the run's stop notice, if any. Raises `PeerError` if a rank has announced its failure."""
        return read_stop(self._window)

    def request_stop(self, notice: StopNotice) -> None:
        """Ask all ranks to stop; the first request counts."""
        if self._window.load(Word.STOP) == 0 and self._window.compare_swap(Word.STOP, 0, notice.to_word()) == 0:
            self._window.ring(Word.STORE_BELL)

    def take_evaluation(self) -> int | None:
        """Return the version whose snapshot this worker is to evaluate now, or None. Each is given to one worker."""
        due, taken = self._window.load(Word.EVALUATIONS_DUE), self._window.load(Word.EVALUATIONS)
        # If another worker is quicker, this one gets none now, but may take the next evaluation.
        if taken >= due or self._window.compare_swap(Word.EVALUATIONS, taken, taken + 1) != taken:
            return None
        first, every = self._window.load(Word.FIRST_EVALUATION), self._window.load(Word.EVALUATE_EVERY)
        return first + taken * every

    def report_evaluation(self, version: int, statistics: Sequence[float]) -> None:
        """Pass the result of an evaluation to the store, after waiting until it has read the previous result."""
        self._touch()
        self._wait(lambda: self._get(WorkerWord.EVALUATION_TAKEN) == self._reported)
        evaluation_words.write_evaluation(self._window, self._worker, version, statistics)
        self._window.flush()
        self._reported += 1
        self._set(WorkerWord.EVALUATED, self._reported)
        self._window.ring(Word.STORE_BELL)

    def _announce(self) -> int:
        """Return the version to pull; announce it first if the store needs to know, before it makes the next version."""
        if not self._options.announces:
            return self._window.load(Word.VERSION)
        while True:
            version = self._window.load(Word.VERSION)
            if self._under_way != IDLE:
                self._set_slot(SlotWord.NEXT_BASE_VERSION, version)
                self._has_next_base = True
            self._announce_base(min(version, self._under_way))
            following = self._window.load(Word.NEXT_VERSION)
            # A gradient under way meanwhile is older and delays the store itself: to wait for the store would be a deadlock.
            if following == version or not self._options.waits_for_stragglers or self._under_way != IDLE:
                if self._window.load(Word.VERSION) == version:
                    return version
                continue
            # The next version waits for a straggler or is being made: a gradient on this version would come too late.
            self._announce_base(IDLE)
            self._wait(functools.partial(self._is_settled, following))

    def _is_free(self) -> bool:
        self._freed = self._get_slot(SlotWord.FREED)
        return self._freed == self._pushed

    def _is_drained(self) -> bool:
        first = self._layout.slot_word(self._slot, SlotWord.DRAINED)
        drained, self._freed = self._window.load_words(first, 2)
        return drained == self._pushed

    def _announce_base(self, version: int) -> None:
        if not self._options.announces:
            return
        self._set_slot(SlotWord.BASE_VERSION, version)
        if self._options.waits_for_stragglers:  # an update may wait for this announcement
            self._window.ring(Word.STORE_BELL)

    def _withdraw_next_base(self) -> None:
        """Withdraw the version pulled ahead: it is announced as the base version by now, or nothing is under way."""
        if self._has_next_base:
            self._set_slot(SlotWord.NEXT_BASE_VERSION, IDLE)
            self._has_next_base = False

    def _is_settled(self, announced: int) -> bool:
        """Whether the `announced` version is out, or was withdrawn because the sum of its gradients was not finite."""
        return self._window.load(Word.NEXT_VERSION) != announced or self._window.load(Word.VERSION) >= announced

    def _wait(self, is_over: Callable[[], bool], look: Callable[[], None] = lambda: None) -> None:
        self.wait_until(is_over, self._window, self._layout.slot_word(self._slot, SlotWord.BELL), look)

    def wait_until(
        self, is_over: Callable[[], bool], window: StoreWindow, bell: int, look: Callable[[], None] = lambda: None
    ) -> None:
        """Wait until `is_over()`, woken by `bell` of `window`. Raises `PeerError` if the store dies or a rank fails. `look` is
        called from time to time."""
        store = watch_store(self._window, self._options.store_timeout_seconds)

        def look_around() -> None:
            self.stop_notice()
            self._touch()
            self.dismissals.check()
            store.check()
            self._look()
            look()

        wait_until(
            is_over,
            window,
            bell,
            Periodic(look_around, _LOOK_AROUND_SECONDS),
            longest_poll_seconds=_LONGEST_POLL_SECONDS,
        )

    def _get(self, word: int) -> int:
        return self._window.load(self._layout.worker_word(self._worker, word))

    def _set(self, word: int, value: int) -> None:
        self._window.store(self._layout.worker_word(self._worker, word), value)

    def _get_slot(self, word: int) -> int:
        return self._window.load(self._layout.slot_word(self._slot, word))

    def _set_slot(self, word: int, value: int) -> None:
        self._window.store(self._layout.slot_word(self._slot, word), value)
