"""Counting a control word up in a thread, by which other ranks see that this process lives.

Where possible the thread is one of C, which no step stops that keeps Python's lock; otherwise one of Python.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass
from typing import Protocol

from hvd_async.vectors import arithmetic

# Beats after the limit until a process ends itself, as in _pulse.c.
_GRACE_BEATS = 4
# How long the exit of a process waits for a beat under way.
_EXIT_SECONDS = 1.0


@dataclass(frozen=True)
class Rhythm:
    """A beat every `every_seconds`. While nobody has touched the pulse for `limit_seconds`, the word is `hung`; soon after, the
    process ends by SIGKILL if `ends_process`."""

    every_seconds: float
    limit_seconds: float
    hung: int
    ends_process: bool = False


@dataclass(frozen=True)
class FarWord:
    """A word of a block on another host: its index, the address of `MPI_Send`, and what it is called with, to send `request`, the
    index and a value to rank `owner`. Handles are pointers in some MPIs and ints in others."""

    send: int = 0
    type: int = 0
    communicator: int = 0
    owner: int = 0
    tag: int = 0
    request: int = 0
    index: int = 0
    are_pointers: bool = False


class Pulse(Protocol):
    """A thread that counts a word up. It continues after an exception, until the process ends."""

    def touch(self) -> None:
        """Note that the work of this process has made progress."""

    def stop(self) -> None:
        """End the thread and wait for it."""


class NativePulse:
    """A pulse whose thread is one of C."""

    def __init__(
        self,
        word: int | FarWord,
        rhythm: Rhythm,
        window: object,
        watched: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """Start the thread. `word`: its address, or where it is on another host; `window` keeps its memory. `stop` waits
        inside the context of `watched`, which may end the process."""
        self._window = window
        self._watched = watched
        address, far = (word, FarWord()) if isinstance(word, int) else (0, word)
        settings = (rhythm.every_seconds, rhythm.limit_seconds, rhythm.hung, rhythm.ends_process)
        self._number = arithmetic.start_pulse(address, *settings, astuple(far))
        # The end of the interpreter would not stop the thread, and its memory is unmapped then. This also keeps the window.
        atexit.register(self._stop_within, _EXIT_SECONDS)

    def touch(self) -> None:
        arithmetic.touch_pulse(self._number)

    def stop(self) -> None:
        with self._watched():
            while not self._stop_within(_EXIT_SECONDS):
                pass
        atexit.unregister(self._stop_within)

    def _stop_within(self, seconds: float) -> bool:
        return arithmetic.stop_pulse(self._number, seconds)


class ThreadPulse:
    """A pulse whose thread is one of Python."""

    def __init__(self, store: Callable[[int], None], rhythm: Rhythm) -> None:
        """Start the thread. `store` writes the word."""
        self._store = store
        self._rhythm = rhythm
        self._touched = time.monotonic()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hvd-async-heartbeat", daemon=True)
        self._thread.start()

    def touch(self) -> None:
        self._touched = time.monotonic()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        count, num_hung = 1, 0
        while not self._is_over.wait(self._rhythm.every_seconds):
            is_hung = time.monotonic() - self._touched > self._rhythm.limit_seconds
            num_hung = num_hung + 1 if is_hung else 0
            count += 1
            # The thread that works with the window meets the same error, and reports it.
            with contextlib.suppress(Exception):
                self._store(self._rhythm.hung if is_hung else count)
            if self._rhythm.ends_process and num_hung > _GRACE_BEATS:
                os.kill(os.getpid(), signal.SIGKILL)
