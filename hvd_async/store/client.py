"""A worker's side of the protocol: claim, push, pull, wait, leave. Written against `Window`, whatever carries it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from hvd_async.errors import PeerError
from hvd_async.store.ledger import ClaimOrder
from hvd_async.store.parameter_store import Arrival
from hvd_async.transport.layout import (
    MAX_STATISTICS,
    StopKind,
    StopNotice,
    Word,
    WorkerState,
    WorkerWord,
    float_to_word,
)
from hvd_async.transport.window import Window

# Announced as base version by a worker that has no gradient under way.
IDLE = 2**62
_LONGEST_SLEEP_SECONDS = 0.002


@dataclass(frozen=True)
class ClientOptions:
    """What a worker has to know of the store's rules."""

    waits_for_stragglers: bool = False  # max_staleness with `wait`: do not start on a version that is about to be replaced
    store_timeout_seconds: float = 60.0
    claim_order: ClaimOrder = field(default_factory=ClaimOrder)


class StoreClient:
    """One worker's access to the store. Used by one thread; nothing here is collective.

    Every method that waits ends with `PeerError` when the store has given no sign of life for `store_timeout_seconds`, or
    when a rank announced a failure.
    """

    def __init__(self, window: Window, worker: int, options: ClientOptions) -> None:
        """`worker`: 0 to num_workers - 1, each used by one client."""
        self._window = window
        self._worker = worker
        self._options = options
        self._version = -1
        self._pushed = 0
        self._heartbeat = 0
        self._ticket: int | None = None
        self._reported = 0

    @property
    def version(self) -> int:
        """The version that the last `pull` gave; -1 before the first."""
        return self._version

    def join(self) -> None:
        """Tell the store that this worker is there, and wait until it has published its first version."""
        self._set(WorkerWord.BASE_VERSION, IDLE)
        self._set(WorkerWord.STATE, WorkerState.ACTIVE)
        self._wait(lambda: self._window.load(Word.STORE_HEARTBEAT) > 0)

    def leave(self) -> None:
        """Tell the store that no gradient will come from this worker any more. What is in the slot still counts."""
        self._set(WorkerWord.BASE_VERSION, IDLE)
        self._set(WorkerWord.STATE, WorkerState.LEFT)

    def claim(self) -> int:
        """The number of the next batch, which no other worker gets. Does not block."""
        return self._options.claim_order.batch(self._window.fetch_add(Word.CLAIMS, 1))

    def push(self, gradient: torch.Tensor, arrival: Arrival) -> None:
        """Hand `gradient` ([size], float32, CPU; the caller's again on return) and its description to the store.

        Waits until the store has taken the one before it out of the slot.
        """
        self._beat()
        self._wait(lambda: self._get(WorkerWord.DRAINED) == self._pushed)
        self._window.put(self._window.layout.slot_offset(self._worker), gradient)
        self._set(WorkerWord.SLOT_BASE_VERSION, arrival.base_version)
        self._set(WorkerWord.SLOT_TOKENS, arrival.tokens)
        self._set(WorkerWord.SLOT_LOSS, float_to_word(arrival.loss))
        self._set(WorkerWord.SLOT_BATCH, arrival.batch)
        self._set(WorkerWord.SLOT_SECONDS, float_to_word(arrival.step_seconds))
        self._pushed += 1
        self._set(WorkerWord.PUSHED, self._pushed)  # last: the store looks at the rest only after this
        self._set(WorkerWord.BASE_VERSION, IDLE)  # after PUSHED: the gradient is under way here or there, never nowhere

    def wait_drained(self) -> None:
        """Wait until the store has taken the last gradient in and, if that completed an update, published it."""
        self._wait(lambda: self._get(WorkerWord.DRAINED) == self._pushed)

    def wait_released(self) -> bool:
        """Wait until the fate of all gradients pushed is known, as lock-step asks. False if a signal stops the run first."""
        released = False

        def is_over() -> bool:
            nonlocal released
            released = self._get(WorkerWord.RELEASED) == self._pushed
            notice = self.stop_notice()
            return released or (notice is not None and notice.kind is StopKind.SIGNAL)

        self._wait(is_over)
        return released

    def pull(self, parameters: torch.Tensor) -> int:
        """Make `parameters` ([size], float32, CPU) those of the newest version, and return which it is.

        The copy is whole: all of one version, that of the number returned. Nothing is copied where it is held already, so
        `parameters` must be what the last pull left there.
        """
        self._beat()
        while True:
            version = self._announce()
            if version == self._version:
                return version
            self._window.get(self._window.layout.published_offset(version), parameters)
            # The buffer is written again only for version + num_buffers, announced before the first byte.
            if self._window.load(Word.NEXT_VERSION) < version + self._window.layout.num_buffers:
                self._version = version
                return version

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
        notice = StopNotice.from_word(self._window.load(Word.STOP))
        if notice is not None and notice.kind is StopKind.FAILURE:
            raise PeerError(f"rank {notice.rank} failed; its message says why", is_reported=True)
        return notice

    def request_stop(self, notice: StopNotice) -> None:
        """Ask all ranks to stop; the first notice stands."""
        if self._window.load(Word.STOP) == 0:
            self._window.store(Word.STOP, notice.to_word())

    def take_evaluation(self) -> int | None:
        """The version whose snapshot this worker is to evaluate now, or None. Each is given to one worker."""
        due = self._window.load(Word.EVALUATIONS_DUE)
        if self._ticket is None and self._window.load(Word.EVALUATIONS) < due:
            self._ticket = self._window.fetch_add(Word.EVALUATIONS, 1)
        # Another worker may have been quicker: the ticket is then kept for the evaluation that it names.
        if self._ticket is None or self._ticket >= due:
            return None
        first, every = self._window.load(Word.FIRST_EVALUATION), self._window.load(Word.EVALUATE_EVERY)
        version = first + self._ticket * every
        self._ticket = None
        self._set(WorkerWord.BASE_VERSION, IDLE)  # no gradient is under way while it evaluates
        return version

    def report_evaluation(self, version: int, statistics: Sequence[float]) -> None:
        """Hand the result of an evaluation to the store; waits until it has read the one before."""
        if len(statistics) > MAX_STATISTICS:
            raise ValueError(f"statistics: got {len(statistics)} numbers, expected at most {MAX_STATISTICS}")
        self._beat()
        self._wait(lambda: self._get(WorkerWord.EVALUATION_TAKEN) == self._reported)
        self._set(WorkerWord.EVALUATED_VERSION, version)
        for i, value in enumerate(statistics):
            self._set(WorkerWord.STATISTICS + i, float_to_word(value))
        self._reported += 1
        self._set(WorkerWord.EVALUATED, self._reported)

    def _announce(self) -> int:
        """Tell the store which version is about to be worked on, so that it knows before it moves on."""
        while True:
            version = self._window.load(Word.VERSION)
            self._set(WorkerWord.BASE_VERSION, version)
            following = self._window.load(Word.NEXT_VERSION)
            if following == version or not self._options.waits_for_stragglers:
                if self._window.load(Word.VERSION) == version:
                    return version
                continue
            # The next version waits for a straggler or is being made: work on this one would come too late.
            self._set(WorkerWord.BASE_VERSION, IDLE)
            self._wait(functools.partial(self._is_settled, following))

    def _is_settled(self, announced: int) -> bool:
        """Whether the version that the store announced is out, or will not come: the sum of its gradients was not finite."""
        return self._window.load(Word.NEXT_VERSION) != announced or self._window.load(Word.VERSION) >= announced

    def _wait(self, is_over: Callable[[], bool]) -> None:
        """Poll `is_over`, first eagerly, then with short sleeps, watching the store's heartbeat meanwhile."""
        pause, heartbeat, since = 0.0, -1, time.monotonic()
        while not is_over():
            time.sleep(
                pause
            )  # one-sided communication wakes nobody: words are polled, and the core is left to those who compute
            pause = min(_LONGEST_SLEEP_SECONDS, pause + 0.00005)
            if pause < _LONGEST_SLEEP_SECONDS:
                continue
            self.stop_notice()
            self._beat()
            now, seen = time.monotonic(), self._window.load(Word.STORE_HEARTBEAT)
            if seen != heartbeat:
                heartbeat, since = seen, now
            elif now - since > self._options.store_timeout_seconds:
                raise PeerError(
                    f"the store gave no sign of life for {now - since:.0f} s (strategy.store_timeout_seconds); its rank is"
                    " dead, stopped or starved of a core"
                )

    def _beat(self) -> None:
        self._heartbeat += 1
        self._set(WorkerWord.HEARTBEAT, self._heartbeat)

    def _get(self, word: int) -> int:
        return self._window.load(self._window.layout.worker_word(self._worker, word))

    def _set(self, word: int, value: int) -> None:
        self._window.store(self._window.layout.worker_word(self._worker, word), value)
