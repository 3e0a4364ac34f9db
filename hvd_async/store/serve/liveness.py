"""Liveness: heartbeats of ranks, watches over them, and waits that end when a heartbeat stops.

Workers and shards wait by `wait_until`; the store's server has a loop of its own, which never waits for one condition alone.
Only this module decides that a rank is dead.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection
from types import TracebackType

from hvd_async.errors import PeerError
from hvd_async.store.wire.layout import StoreWindow, Word, WorkerWord

# A heartbeat of a rank on another node costs a network round trip.
_BEAT_SECONDS = 0.25
# Longest sleep between two checks of a condition, for ranks that a bell wakes.
_SLEEP_SECONDS = 0.02
# Interval between checks of the workers: a launcher may leave only a second to save the run after a worker was killed.
_LOOK_SECONDS = 0.1


class Heartbeat:
    """Counts a control word up in a thread of its own while this process lives, whatever its other threads do; a context
    manager.

    A long step, an evaluation or a slow disk does not stop the heartbeat. It stops when its owner has not called `touch` for
    `hang_timeout_seconds`, which counts as hung. It continues after an exception, while the state is saved and until the
    process ends.
    """

    def __init__(self, window: StoreWindow, word: int, hang_timeout_seconds: float = 3600.0) -> None:
        """`word` of `window` is written by this heartbeat alone. No thread is started yet."""
        self._window = window
        self._word = word
        self._hang_timeout_seconds = hang_timeout_seconds
        self._touched = time.monotonic()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hvd-async-heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        """Write the first heartbeat, and start the thread."""
        self._window.store(self._word, 1)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the thread and wait for it, unless an exception was raised."""
        if kind is None:
            self._is_over.set()
            self._thread.join()

    def touch(self) -> None:
        """Note that the work of this process has made progress."""
        self._touched = time.monotonic()

    def _run(self) -> None:
        count = 1
        while not self._is_over.wait(_BEAT_SECONDS):
            if time.monotonic() - self._touched > self._hang_timeout_seconds:
                continue
            count += 1
            # The thread that works with the window meets the same error, and reports it.
            with contextlib.suppress(Exception):
                self._window.store(self._word, count)


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


def is_alive(process: int) -> bool:
    """Whether the process with this id lives on this host; a zombie does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's process
    with contextlib.suppress(OSError, IndexError):
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    return True


class HeartbeatWatch:
    """Decides whether another rank is alive, by the control word that its `Heartbeat` counts up."""

    def __init__(self, window: StoreWindow, word: int, who: str, timeout_seconds: float) -> None:
        """The rank counts as alive now. `who` names it in messages."""
        self._window = window
        self._word = word
        self._who = who
        self._timeout_seconds = timeout_seconds
        self._silence = Silence()

    def is_silent(self) -> bool:
        """Whether the rank has shown no heartbeat for the time limit."""
        return self._silence.seconds(self._window.load(self._word)) > self._timeout_seconds

    def check(self) -> None:
        """Raise `PeerError` if the rank is silent; a part of the parameters is then lost."""
        if self.is_silent():
            raise PeerError(
                f"{self._who} gave no sign of life for {self._timeout_seconds:.0f} s (strategy.store_timeout_seconds); its rank"
                " is dead, stopped or starved of a core",
                is_state_lost=True,
            )


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


class WorkerWatch:
    """Decides whether the workers of a run are alive, on the store's rank. Used by one thread."""

    def __init__(self, window: StoreWindow, timeout_seconds: float, near_workers: Collection[int]) -> None:
        """`near_workers`: the workers on this host, whose processes can be checked."""
        self._window = window
        self._timeout_seconds = timeout_seconds
        self._near_workers = near_workers
        self._silences = {worker: Silence() for worker in range(window.layout.num_workers)}
        self._processes: dict[int, int] = {}  # of near workers that were seen alive
        self._looked = 0.0

    def check(self, workers: Collection[int]) -> None:
        """Raise `PeerError` if one of `workers` has shown no heartbeat for the time limit, or its process is gone.

        Calls shortly after a check do nothing."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        for worker in sorted(workers):
            silence = self._silences[worker].seconds(self._load(worker, WorkerWord.HEARTBEAT))
            if silence > self._timeout_seconds:
                raise PeerError(
                    f"worker {worker} gave no sign of life for {silence:.0f} s (strategy.worker_timeout_seconds); it is dead,"
                    " stopped or starved of a core, or a step lasted longer than strategy.hang_timeout_seconds"
                )
            if worker in self._near_workers:
                self._check_process(worker)

    def _check_process(self, worker: int) -> None:
        process = self._processes.get(worker) or self._load(worker, WorkerWord.PROCESS)
        if process == 0:
            return
        if is_alive(process):
            self._processes[worker] = process
        elif worker in self._processes:  # else the worker may have another process namespace, as in a container of its own
            raise PeerError(f"worker {worker} is dead: its process {process} is gone; the store's state is saved")

    def _load(self, worker: int, word: int) -> int:
        return self._window.load(self._window.layout.worker_word(worker, word))
