"""A line about work that takes long, so that nobody takes it for a hang."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from hvd_async.errors import DataError

_LONG_SECONDS = 15.0


@contextlib.contextmanager
def told_if_long(what: str) -> Iterator[None]:
    """Print, from another thread, that `what` takes a while, if the block lasts for longer than 15 s; a context manager."""
    timer = threading.Timer(_LONG_SECONDS, _print, [f"{what}: this takes a while"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _print(line: str) -> None:
    with contextlib.suppress(OSError, DataError):  # a closed or full output is reported by whoever prints next
        print(line, flush=True)
