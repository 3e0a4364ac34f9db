"""Signs of life: whoever may be waited for gives them, whoever waits looks for them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from types import TracebackType

from hvd_async.store.wire.layout import StoreWindow

# A sign of life costs a rank on another node a journey.
_BEAT_SECONDS = 0.25


class Heartbeat:
    """Counts a control word up in a thread of its own while this process lives, whatever its other threads do; a context manager.

    A long step, an evaluation or a slow disk does not stop it. It stops where its owner has not called `touch` for the time
    after which it counts as hung. After an exception it goes on: what there is to save is being saved, and the process ends soon.
    """

    def __init__(self, window: StoreWindow, word: int, hang_timeout_seconds: float = 3600.0) -> None:
        """Starts nothing. `word` of `window` is the heartbeat's own."""
        self._window = window
        self._word = word
        self._hang_timeout_seconds = hang_timeout_seconds
        self._touched = time.monotonic()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hvd-async-heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        """Give the first sign, and start the thread."""
        self._window.store(self._word, 1)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the thread and wait for it, after an orderly end."""
        if kind is None:
            self._is_over.set()
            self._thread.join()

    def touch(self) -> None:
        """Say that whatever this process was doing has come to an end, or goes on as it should."""
        self._touched = time.monotonic()

    def _run(self) -> None:
        count = 1
        while not self._is_over.wait(_BEAT_SECONDS):
            if time.monotonic() - self._touched > self._hang_timeout_seconds:
                continue
            count += 1
            # Whatever is wrong with the window is met, and told, by the thread that works with it.
            with contextlib.suppress(Exception):
                self._window.store(self._word, count)


class Silence:
    """How long a heartbeat has been standing still, as one who looks at it now and then knows."""

    def __init__(self) -> None:
        """The time before the first look counts as life."""
        self._seen = -1
        self._since = time.monotonic()

    def seconds(self, heartbeat: int) -> float:
        """Return for how long the word has been `heartbeat`, what was just read."""
        now = time.monotonic()
        if heartbeat != self._seen:
            self._seen, self._since = heartbeat, now
        return now - self._since


def is_alive(process: int) -> bool:
    """Whether a process of this host, with this id, lives; one that only waits to be reaped does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    with contextlib.suppress(OSError, IndexError):
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    return True
