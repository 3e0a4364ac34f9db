"""SIGTERM, Ctrl-C and SIGUSR1 as a request that the training loop sees between steps.

mpirun kills its ranks within a second of a SIGTERM or Ctrl-C of its own, but passes SIGUSR1 on to all of them, on all hosts.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from hvd_async.handlers import handling
from hvd_async.transport.layout import StopKind, StopNotice

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers the first signal that asked this process to stop."""

    def __init__(self, rank: int) -> None:
        """`rank` is named in the notice."""
        self._rank = rank
        self._signal_number = 0

    def notice(self) -> StopNotice | None:
        """What was asked for, if anything was."""
        return StopNotice(StopKind.SIGNAL, self._rank, self._signal_number) if self._signal_number else None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block. A second Ctrl-C ends the process as usual; other signals may repeat,
        as batch systems send them again."""
        with handling(_SIGNALS, self._handle):
            yield

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal_number:
            signal.default_int_handler(number, None)  # asked twice by hand: do not wait for the end of the step
        self._signal_number = self._signal_number or number
