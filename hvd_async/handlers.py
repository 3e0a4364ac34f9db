"""Handlers of signals, for as long as a block lasts."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType


@contextlib.contextmanager
def handling(numbers: Sequence[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Have `handler` called at each of the signals inside the block; then those before it serve again. In the main thread.

    A SIGHUP that is ignored stays so: that is what nohup asks for. (A shell has commands in the background ignore SIGINT, and
    means that of the terminal: one that is sent to them counts.)
    """
    is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    before = {number: signal.signal(number, handler) for number in numbers if not (is_nohup and number == signal.SIGHUP)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
