"""Liveness: heartbeats of ranks, watches over them, and waits that end when a heartbeat stops.

Workers and shards wait by `wait_until`; the store's server has a loop of its own, which never waits for one condition alone.
Only this module decides that a rank is dead.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Protocol

from hvd_async.errors import PeerError
from hvd_async.store.wire.layout import LifeWord, StoreWindow, Word, WorkerWord
from hvd_async.system.process_state import scope_of_ids, state_of
from hvd_async.transport.pulse import Pulse, Rhythm

# A heartbeat of a rank on another node is a message over the network.
_BEAT_SECONDS = 0.25
# Longest sleep between two checks of a condition, for ranks that a bell wakes.
_SLEEP_SECONDS = 0.02
# Interval between checks of the workers: a launcher may leave only a second to save the run after a worker was killed.
_LOOK_SECONDS = 0.1
# A rank whose heartbeat is late is looked for among the processes of this host.
_LATE_SECONDS = 2 * _BEAT_SECONDS
ON_THE_WAY_SECONDS = 2.0
"""Time after the end of a process of another host in which its last writes may arrive."""
_HUNG = -1
"""A heartbeat in its place: this process lives, but has hung for longer than its limit."""


def show_process(window: StoreWindow, word: int) -> None:
    """Let others see the process of this rank, whose first `LifeWord` in `window` is `word`, before its heartbeat begins."""
    window.store(word + LifeWord.SCOPE, scope_of_ids())
    window.store(word + LifeWord.PROCESS, os.getpid())


class Heartbeat:
    """Counts a control word up in a thread of its own while this process lives, whatever its other threads do; a context
    manager.

    A long step, an evaluation, a slow disk or a held lock of Python does not stop the heartbeat. When its owner has not called
    `touch` for `hang_timeout_seconds`, the word says that it hangs. The heartbeat continues after an exception, while the
    state is saved and until the process ends.
    """

    def __init__(
        self, window: StoreWindow, word: int, hang_timeout_seconds: float = 3600.0, ends_process: bool = False
    ) -> None:
        """`word`: the first `LifeWord` of this rank in `window`, which this heartbeat alone writes. No thread is started yet.
        `ends_process`: when it hangs, since others go on without it."""
        self._window = window
        self._word = word
        self._rhythm = Rhythm(_BEAT_SECONDS, hang_timeout_seconds, _HUNG, ends_process)
        self._pulse: Pulse | None = None

    def __enter__(self) -> Heartbeat:
        """Write the first heartbeat, and start the thread."""
        show_process(self._window, self._word)
        self._window.store(self._word, 1)
        self._pulse = self._window.beat(self._word, self._rhythm)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the thread and wait for it, unless an exception was raised."""
        if kind is None and self._pulse is not None:
            self._pulse.stop()

    def touch(self) -> None:
        """Note that the work of this process has made progress."""
        if self._pulse is not None:
            self._pulse.touch()


class Silence:
    """Measures how long a heartbeat has not changed, from readings at irregular times."""

    def __init__(self) -> None:
        """The heartbeat counts as changed now."""
        self._seen = -1
        self._since = time.monotonic()

    def seconds(self, heartbeat: int) -> float:
        """Return for how many seconds the word has had the value `heartbeat`, which was just read."""
        now = time.monotonic()
        if heartbeat != self._seen:
            self._seen, self._since = heartbeat, now
        return now - self._since


class RankProcess:
    """The process of another rank, which may be on another host."""

    def __init__(self, window: StoreWindow, heartbeat: int) -> None:
        """`heartbeat`: the first of the rank's `LifeWord`s in `window`."""
        self._window = window
        self._heartbeat = heartbeat
        self.id: int | None = None
        """Its id, if `state` has found that it has a meaning here."""
        self._is_far = False

    def state(self) -> str | None:
        """Return the state of the process, see `state_of`; None if it cannot be seen from here, or has not started."""
        if self._is_far:
            return None
        if self.id is None:
            process = self._window.load(self._heartbeat + LifeWord.PROCESS)
            if process == 0:
                return None
            scope = self._window.load(self._heartbeat + LifeWord.SCOPE)
            self._is_far = scope == 0 or scope != scope_of_ids()
            if self._is_far:
                return None
            self.id = process
        return state_of(self.id)


class HeartbeatWatch:
    """Decides whether another rank is alive, by the control word that its `Heartbeat` counts up, and by its process if that can
    be seen."""

    def __init__(self, window: StoreWindow, word: int, who: str, timeout_seconds: float) -> None:
        """The rank counts as alive now. `who` names it in messages; `word` is its first `LifeWord`."""
        self._window = window
        self._word = word
        self._process = RankProcess(window, word)
        self._who = who
        self._timeout_seconds = timeout_seconds
        self._silence = Silence()

    def why_dead(self) -> str:
        """Return why the rank counts as dead; empty if it does not."""
        silence = self._silence.seconds(self._window.load(self._word))
        if silence > self._timeout_seconds:
            return (
                f"{self._who} gave no sign of life for {self._timeout_seconds:.0f} s (strategy.store_timeout_seconds); its rank"
                " is dead, stopped or starved of a core"
            )
        if silence > _LATE_SECONDS and self._process.state() == "":
            return f"{self._who} is dead: its process {self._process.id} is gone"
        return ""

    def check(self) -> None:
        """Raise `PeerError` if the rank counts as dead; a part of the parameters is then lost."""
        if reason := self.why_dead():
            raise PeerError(reason, is_state_lost=True)


def watch_store(window: StoreWindow, timeout_seconds: float, who: str = "the store") -> HeartbeatWatch:
    """Return a watch over the rank that serves the block of `window`, the block of shard 0."""
    return HeartbeatWatch(window, Word.STORE_HEARTBEAT, who, timeout_seconds)


class Periodic:
    """Calls an action at most once in an interval, however often it is called itself."""

    def __init__(self, action: Callable[[], None], seconds: float) -> None:
        """`action` is first called when `seconds` have passed."""
        self._action = action
        self._seconds = seconds
        self._called = time.monotonic()

    def __call__(self) -> None:
        """Call the action if the interval has passed since the last call. Raises what the action raises."""
        now = time.monotonic()
        if now - self._called >= self._seconds:
            self._called = now
            self._action()


def wait_until(
    is_over: Callable[[], bool],
    window: StoreWindow,
    bell: int,
    look_around: Callable[[], None],
    *,
    longest_poll_seconds: float = 0.001,
) -> None:
    """Wait until `is_over()`, which is checked whenever `bell` of `window` rings; without bells, by polling.

    The thread sleeps between checks, which leaves the core to computation. `look_around` is called after each sleep, and may
    end the wait by raising. It is not called if `is_over()` from the beginning.
    """
    pause = 0.0
    while True:
        heard = window.heard(bell)
        if is_over():
            return
        window.wait(bell, heard, pause)
        pause = _SLEEP_SECONDS if window.has_bells else min(longest_poll_seconds, pause + longest_poll_seconds / 40)
        look_around()


class Guests(Protocol):
    """The workers of other hosts that are no ranks, and of which somebody else knows whether they live: see `transport`."""

    def ended(self) -> frozenset[int]:
        """Return the guests that have ended: nothing of them is written any more."""

    def shut_out(self, place: int) -> None:
        """Let this guest, if it is one, write nothing any more."""


class NoGuests:
    """No guests."""

    def ended(self) -> frozenset[int]:
        return frozenset()

    def shut_out(self, place: int) -> None:
        """Do nothing."""


NO_GUESTS = NoGuests()


class WorkerWatch:
    """Decides whether the workers of a run are alive, on the store's rank. Used by one thread."""

    def __init__(
        self,
        window: StoreWindow,
        timeout_seconds: float,
        hang_timeout_seconds: float = 3600.0,
        ended_workers: Callable[[], Collection[int]] = lambda: (),
        guests: Guests = NO_GUESTS,
    ) -> None:
        """Workers whose process can be seen from here count as dead if it is gone, or stopped for `timeout_seconds`; one that
        lives may be silent, since it holds Python's lock or has no core, for `hang_timeout_seconds`. Others may be silent for
        `timeout_seconds`; `ended_workers` returns those of which MPI knows that they are dead."""
        self._window = window
        self._timeout_seconds = timeout_seconds
        self._hang_timeout_seconds = hang_timeout_seconds
        self._ended_workers = ended_workers
        self._guests = guests
        self._are_new: set[int] = set()
        self._are_guests: set[int] = set()
        self._ended_since: dict[int, float] = {}
        self._silences: dict[int, Silence] = {}
        self._processes: dict[int, RankProcess] = {}
        for worker in range(window.layout.num_workers):
            self._look_at(worker)
        self._looked = 0.0

    def begin(self, worker: int) -> None:
        """Watch the process that is `worker` from now on, in place of the rank that was; it counts as alive."""
        self._are_new.add(worker)
        if self._load(worker, WorkerWord.IS_GUEST):
            self._are_guests.add(worker)
        else:
            self._are_guests.discard(worker)
        self._ended_since.pop(worker, None)
        self._look_at(worker)

    def is_gone(self, worker: int) -> bool:
        """Whether nothing is written any more by the process that was `worker`."""
        if worker in self._are_guests:
            return self.has_guest_ended(worker)
        state = self._processes[worker].state()
        if state is not None or not self._has_ended(worker):
            return state == ""
        since = self._ended_since.setdefault(worker, time.monotonic())  # its last writes may still be on their way
        return time.monotonic() - since > ON_THE_WAY_SECONDS

    def has_guest_ended(self, worker: int) -> bool:
        """Whether the guest that has the place of `worker` has ended."""
        return worker in self._guests.ended()

    def _has_ended(self, worker: int) -> bool:
        """Whether `worker`, on another host, is known to have ended."""
        if worker in self._are_guests:
            return self.has_guest_ended(worker)
        return worker in self._ended_workers() and worker not in self._are_new

    def _look_at(self, worker: int) -> None:
        self._silences[worker] = Silence()
        self._processes[worker] = RankProcess(self._window, self._window.layout.worker_word(worker, WorkerWord.HEARTBEAT))

    def find_dead(self, workers: Collection[int]) -> dict[int, str]:
        """Return why each of `workers` counts as dead that is dead, or whose process `end` can end.

        Raises `PeerError` for one that is silent on another host, and may live and come back. Calls shortly after another do
        nothing.
        """
        if not self.is_due():
            return {}
        self._looked = time.monotonic()
        found = {worker: self._why_dead(worker) for worker in sorted(workers)}
        return {worker: reason for worker, reason in found.items() if reason}

    def is_due(self) -> bool:
        """Whether `find_dead` would look again."""
        return time.monotonic() - self._looked >= _LOOK_SECONDS

    def end(self, worker: int) -> None:
        """End the process of `worker`, which counts as dead, if it lives on this host: it may only be stopped. On another host,
        one that hangs ends itself, and a guest is shut out."""
        self._guests.shut_out(worker)
        process = self._processes[worker].id
        if process is not None and process != os.getpid():  # in this process a worker is a thread
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)

    def _why_dead(self, worker: int) -> str:
        """Return why `worker` counts as dead; empty if it does not."""
        heartbeat = self._load(worker, WorkerWord.HEARTBEAT)
        silence = self._silences[worker].seconds(heartbeat)
        state, process = self._processes[worker].state(), self._processes[worker].id
        if heartbeat == _HUNG:
            return f"worker {worker} hangs: a step or an evaluation took longer than strategy.hang_timeout_seconds"
        if state is None or worker in self._are_guests:
            return self._why_dead_elsewhere(worker, silence)
        if state == "":
            return f"worker {worker} is dead: its process {process} is gone"
        if state == "T" and silence > self._timeout_seconds:
            return f"worker {worker}: its process {process} is stopped for {silence:.0f} s (strategy.worker_timeout_seconds)"
        if silence > self._hang_timeout_seconds:
            return f"worker {worker} hangs: no sign of life for {silence:.0f} s (strategy.hang_timeout_seconds)"
        return ""

    def _why_dead_elsewhere(self, worker: int, silence: float) -> str:
        is_guest = worker in self._are_guests
        if self._has_ended(worker):
            what = "connection from" if is_guest else "rank on"
            return f"worker {worker} is dead: its {what} another host has ended"
        if is_guest and silence > self._hang_timeout_seconds:
            return f"worker {worker} hangs: no sign of life for {silence:.0f} s (strategy.hang_timeout_seconds)"
        if not is_guest and silence > self._timeout_seconds:
            raise PeerError(
                f"worker {worker} gave no sign of life for {silence:.0f} s (strategy.worker_timeout_seconds); it is dead, stopped"
                " or starved of a core, or the network is broken; the store's state is saved"
            )
        return ""

    def _load(self, worker: int, word: int) -> int:
        return self._window.load(self._window.layout.worker_word(worker, word))
