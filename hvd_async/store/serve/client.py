"""A worker's side of the protocol: claim, push, pull, wait, leave. Written against `Window`, whatever carries it."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from hvd_async.config import PushConfig
from hvd_async.store.arrival import Arrival
from hvd_async.store.ledger import ClaimOrder
from hvd_async.store.serve.liveness import wait_until, watch_store
from hvd_async.store.wire import arrival_words
from hvd_async.store.wire.layout import MAX_STATISTICS, NUM_PROVISIONAL, SlotWord, StoreWindow, Word, WorkerState, WorkerWord
from hvd_async.store.wire.slots import SlotWriter, split
from hvd_async.store.wire.stop import StopNotice, read_stop
from hvd_async.transport.block import float_to_word

# Announced as base version by a worker that has no gradient under way.
IDLE = 2**62
# A worker that no bell wakes asks the store, which may be on another node, no less often than this.
_LONGEST_POLL_SECONDS = 0.002
_LOOK_AROUND_SECONDS = 0.01
# Copies that newer versions have overwritten meanwhile, before the store is asked to wait for this reader.
_MAX_TORN = 2


@dataclass(frozen=True)
class Base:
    """What a worker computes on: the parameters of `version`, or provisional ones with that many arrivals on top of it, which the
    store made as number `number`."""

    version: int
    provisional: int = 0
    number: int = 0


NO_BASE = Base(-1)


@dataclass(frozen=True)
class ClientOptions:
    """What a worker has to know of the store's rules."""

    waits_for_stragglers: bool = False  # max_staleness with `wait`: do not start on a version that is about to be replaced
    announces: bool = True  # the store asks which versions are under way: a bound that waits, or base parameters, need it
    store_timeout_seconds: float = 60.0
    claim_order: ClaimOrder = field(default_factory=ClaimOrder)
    push: PushConfig = field(default_factory=PushConfig)
    pulls_provisional: bool = False  # where there are provisional parameters on top of the newest version


class StoreClient:
    """One worker's access to the store. Used by one thread; nothing here is collective.

    Every method that waits ends with `PeerError` when the store has given no sign of life for `store_timeout_seconds`, or
    when a rank announced a failure.
    """

    def __init__(
        self,
        windows: Sequence[StoreWindow],
        worker: int,
        options: ClientOptions,
        slot: int | None = None,
        error: torch.Tensor | None = None,
        touch: Callable[[], None] = lambda: None,
    ) -> None:
        """`windows[k]` reaches shard k. `worker`: 0 to num_workers - 1, each used by one client; its pushes go into `slot`,
        which is its own number unless several share one, in turns. `error` ([size] float32, zeros) is what they share of
        error feedback; by default the client has its own. `touch` is called with everything that is done: see `Heartbeat.touch`.
        """
        self._windows = windows
        self._window = windows[0]
        self._layout = self._window.layout
        self._worker = worker
        self._slot = worker if slot is None else slot
        self._options = options
        self._parts = split(sum(window.layout.num_elements for window in windows), len(windows))
        self._writer = SlotWriter(windows, self._parts, options.push, error)
        self._base = NO_BASE
        self._pushed = self._window.load(self._layout.slot_word(self._slot, SlotWord.PUSHED))
        self._freed = -1
        self._under_way = IDLE
        self._has_next_base = False
        self._touch = touch
        self._reported = 0

    @property
    def version(self) -> int:
        """The version that the last `pull` gave; -1 before the first."""
        return self._base.version

    @property
    def base(self) -> Base:
        """What the last `pull` gave."""
        return self._base

    def join(self) -> None:
        """Tell the store that this worker is there, and wait until it has published its first version."""
        self._set(WorkerWord.PROCESS, os.getpid())
        self._set(WorkerWord.STATE, WorkerState.ACTIVE)
        self._wait(lambda: self._window.load(Word.READY) != 0)

    def leave(self, slot_goes_on: bool = False) -> None:
        """Tell the store that no gradient will come from this worker any more. What is in the slot still counts.

        `slot_goes_on`: others will use the slot.
        """
        if not slot_goes_on:
            self.idle()
        self._set(WorkerWord.STATE, WorkerState.LEFT)
        self._window.ring(Word.STORE_BELL)

    def take_over(self, base: Base) -> None:
        """Use the slot that another worker used until now; that one held `base`."""
        self._pushed = self._window.load(self._layout.slot_word(self._slot, SlotWord.PUSHED))
        self._freed = -1
        self._base = base
        if self._options.announces:
            self._has_next_base = self._get_slot(SlotWord.NEXT_BASE_VERSION) != IDLE

    def idle(self) -> None:
        """Tell the store that no gradient is under way for this slot but what is in it."""
        self._under_way = IDLE
        self._announce_base(IDLE)
        self._withdraw_next_base()

    def keep_announced(self, version: int) -> None:
        """A gradient on `version` is being computed meanwhile: it stays announced, whatever is pushed and pulled."""
        self._under_way = version

    def claim(self) -> int:
        """The number of the next batch, which no other worker gets. Does not block."""
        return self._options.claim_order.batch(self._window.fetch_add(Word.CLAIMS, 1))

    def push(self, gradient: torch.Tensor, arrivals: Sequence[Arrival]) -> None:
        """Hand `gradient` ([size], float32, where the windows take it; the caller's again on return) and its description to the
        store.

        It is the sum of the gradients of `arrivals`, not more of them than the slot has room to describe. Waits until the
        slot is free.
        """
        self._touch()
        if self._freed != self._pushed and not self._is_free():
            self._set_slot(SlotWord.WANTED, self._pushed + 1)
            self._window.ring(Word.STORE_BELL)
            self._wait(self._is_free)
        sent = self._writer.write(gradient, self._slot)
        base_version = min(arrival.base_version for arrival in arrivals)
        words = [base_version, float_to_word(sent.largest), len(arrivals), sent.num_bytes]
        for arrival in arrivals:
            words += arrival_words.to_words(arrival)
        self._window.store_words(self._layout.slot_word(self._slot, SlotWord.PUSHED_BASE_VERSION), words)
        for window in self._windows:  # together: what goes to several shards is under way at the same time
            window.flush()
        self._pushed += 1
        self._set_slot(SlotWord.PUSHED, self._pushed)  # last: the store looks at the rest only after this
        # After PUSHED: the gradient is under way here or there, never nowhere.
        self._announce_base(self._under_way)
        self._withdraw_next_base()
        self._window.ring(Word.STORE_BELL)

    def wait_drained(self) -> None:
        """Wait until the store has taken the last gradient in and, if that completed an update, published it."""
        self._wait(self._is_drained)

    def wait_released(self) -> bool:
        """Wait until the fate of all gradients pushed is known, as lock-step asks. False if a signal stops the run first."""
        released = False

        def is_over() -> bool:
            nonlocal released
            released = self._get_slot(SlotWord.RELEASED) == self._pushed
            notice = self.stop_notice()
            return released or (notice is not None and not notice.is_end)

        self._wait(is_over)
        return released

    def pull(self, parameters: torch.Tensor) -> int:
        """Make `parameters` ([size], float32, where the windows take them) those of the newest version, and return which it is.

        With `pulls_provisional` they are those that the store expects after it: see `base`. The copy is whole: all of what `base`
        says. Nothing is copied where it is held already, so `parameters` must be what the last pull left there.
        """
        self._touch()
        may_be_provisional = self._options.pulls_provisional
        for num_torn in itertools.count():
            version = self._announce()
            base = self._newest_base(version) if may_be_provisional else Base(version)
            if base is None:
                continue
            if base == self._base:
                return version
            self._base = NO_BASE  # a copy that is torn has overwritten what was held
            is_held = num_torn >= _MAX_TORN
            if is_held and not self._hold(version):
                continue
            for window, part in zip(self._windows, self._parts, strict=True):
                layout = window.layout
                is_version = base.provisional == 0
                offset = layout.published_offset(version) if is_version else layout.provisional_offset(base.number)
                window.get(offset, parameters[part])
            is_whole = self._is_whole(base)
            if is_held:
                self._let_go()
            if is_whole:
                self._base = base
                return version
            self._touch()
            may_be_provisional = False  # the store makes them faster than this worker reads
        raise AssertionError("unreachable")

    def _hold(self, version: int) -> bool:
        """Ask the store to leave the buffer of `version` alone until `_let_go`; whether it does. It may be about to overwrite it:
        each says what it wants first, then looks at what the other said."""
        self._set(WorkerWord.READING, version + 1)
        if self._window.load(Word.NEXT_VERSION) < version + self._layout.num_buffers:
            return True
        self._let_go()
        return False

    def _let_go(self) -> None:
        self._set(WorkerWord.READING, 0)
        self._window.ring(Word.STORE_BELL)

    def _newest_base(self, version: int) -> Base | None:
        """What to read where `version` was out a moment ago; None if a newer one is by now.

        Of that `version` what was provisional may be overwritten already, and the gradient that this worker pushed in neither.
        """
        number = self._window.load(Word.PROVISIONAL)
        if number == 0:
            return Base(version)
        words = self._window.load_words(Word.PROVISIONAL_VERSION, 2 * NUM_PROVISIONAL)
        place = number % NUM_PROVISIONAL
        below, num_arrivals = words[place], words[NUM_PROVISIONAL + place]
        if below > version:
            return None
        return Base(version, num_arrivals, number) if below == version else Base(version)

    def _is_whole(self, base: Base) -> bool:
        """Whether what was just read, and what is known of it, was not overwritten meanwhile.

        The vectors are written in turns, and each time that is announced before the first byte of any shard.
        """
        if base.provisional == 0:
            return self._window.load(Word.NEXT_VERSION) < base.version + self._layout.num_buffers
        return self._window.load(Word.NEXT_PROVISIONAL) < base.number + NUM_PROVISIONAL

    def wait_for_end(self, stop_requested: Callable[[], StopNotice | None]) -> StopNotice | None:
        """After `leave`: wait until the store has ended the run, and return why it did. Passes a request to stop on meanwhile."""

        def is_over() -> bool:
            requested = stop_requested()
            if requested is not None:
                self.request_stop(requested)
            return self._window.load(Word.SERVED) != 0

        self._wait(is_over)
        return self.stop_notice()

    def stop_notice(self) -> StopNotice | None:
        """What the run's stop word says. Raises `PeerError` if a rank announced its failure there."""
        return read_stop(self._window)

    def request_stop(self, notice: StopNotice) -> None:
        """Ask all ranks to stop; the first notice stands."""
        if self._window.load(Word.STOP) == 0 and self._window.compare_swap(Word.STOP, 0, notice.to_word()) == 0:
            self._window.ring(Word.STORE_BELL)

    def take_evaluation(self) -> int | None:
        """The version whose snapshot this worker is to evaluate now, or None. Each is given to one worker."""
        due, taken = self._window.load(Word.EVALUATIONS_DUE), self._window.load(Word.EVALUATIONS)
        # Another worker may be quicker: then this one has nothing, and the next evaluation is anybody's.
        if taken >= due or self._window.compare_swap(Word.EVALUATIONS, taken, taken + 1) != taken:
            return None
        first, every = self._window.load(Word.FIRST_EVALUATION), self._window.load(Word.EVALUATE_EVERY)
        return first + taken * every

    def report_evaluation(self, version: int, statistics: Sequence[float]) -> None:
        """Hand the result of an evaluation to the store; waits until it has read the one before."""
        if len(statistics) > MAX_STATISTICS:
            raise ValueError(f"statistics: got {len(statistics)} numbers, expected at most {MAX_STATISTICS}")
        self._touch()
        self._wait(lambda: self._get(WorkerWord.EVALUATION_TAKEN) == self._reported)
        self._set(WorkerWord.EVALUATED_VERSION, version)
        first = self._layout.worker_word(self._worker, WorkerWord.STATISTICS)
        self._window.store_words(first, [float_to_word(value) for value in statistics])
        self._window.flush()
        self._reported += 1
        self._set(WorkerWord.EVALUATED, self._reported)
        self._window.ring(Word.STORE_BELL)

    def _announce(self) -> int:
        """Tell the store which version is about to be worked on, so that it knows before it moves on."""
        if not self._options.announces:
            return self._window.load(Word.VERSION)
        while True:
            version = self._window.load(Word.VERSION)
            if self._under_way != IDLE:
                self._set_slot(SlotWord.NEXT_BASE_VERSION, version)
                self._has_next_base = True
            self._announce_base(min(version, self._under_way))
            following = self._window.load(Word.NEXT_VERSION)
            # What is under way meanwhile is older and holds the store back itself: to wait for the store would be for ever.
            if following == version or not self._options.waits_for_stragglers or self._under_way != IDLE:
                if self._window.load(Word.VERSION) == version:
                    return version
                continue
            # The next version waits for a straggler or is being made: work on this one would come too late.
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
        if self._options.waits_for_stragglers:  # an update may wait for this
            self._window.ring(Word.STORE_BELL)

    def _withdraw_next_base(self) -> None:
        """What was pulled ahead is what is being computed now, which the base version says; or nothing is."""
        if self._has_next_base:
            self._set_slot(SlotWord.NEXT_BASE_VERSION, IDLE)
            self._has_next_base = False

    def _is_settled(self, announced: int) -> bool:
        """Whether the version that the store announced is out, or will not come: the sum of its gradients was not finite."""
        return self._window.load(Word.NEXT_VERSION) != announced or self._window.load(Word.VERSION) >= announced

    def _wait(self, is_over: Callable[[], bool]) -> None:
        self.wait_until(is_over, self._window, self._layout.slot_word(self._slot, SlotWord.BELL))

    def wait_until(self, is_over: Callable[[], bool], window: StoreWindow, bell: int) -> None:
        """Wait until `is_over()`, woken by `bell` of `window`, as long as the store lives and no rank has failed."""
        store = watch_store(self._window, self._options.store_timeout_seconds)

        def look_around() -> None:
            self.stop_notice()
            self._touch()
            store.check()

        wait_until(
            is_over,
            window,
            bell,
            look_around,
            look_seconds=_LOOK_AROUND_SECONDS,
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
