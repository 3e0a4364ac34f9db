"""The boxes that a launcher prints about a failed rank, which bury the rank's own message and add nothing to it.

Boxes are held back until the launcher has ended, and dropped if a rank printed a message of ours. All else passes at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator

_BORDER = re.compile(rb"-{60,}\s*")
# First lines of the boxes in which Open MPI reports a rank that ended by itself. Other boxes report a rank that a signal
# ended, or that could not be started.
_OF_FAILED_RANKS = (
    b"prterun detected that one or more processes exited with non-zero status",
    b"MPI_ABORT was invoked on rank",
    b"prterun has exited due to process rank",
)
# Of a box that Open MPI prints at each start that can outlive a rank: it has not tested one-sided communication after failures.
# We have (docs/reliability.md).
_UNTESTED = b"WARNING: The selected 'osc' module"
_UNTESTED_MORE = b"sent help message help-mpi-ft.txt / module:untested"
_OURS = b"hvd-async: "
# A process that outlived the launcher may keep the pipe open.
_PATIENCE_SECONDS = 2.0


class Quieter:
    """Filter for the lines of a launcher's standard error. Pure."""

    def __init__(self) -> None:
        """Begin with no lines."""
        self._box: list[bytes] | None = None
        self._delayed: list[bytes] = []
        self._has_ours = False

    def feed(self, line: bytes) -> bytes:
        """Take in `line`, with its newline, and return what to show now."""
        self._has_ours = self._has_ours or line.startswith(_OURS)
        if self._box is None:
            if self._delayed and not line.strip():  # an empty line after boxes
                self._delayed.append(line)
                return b""
            if not _BORDER.fullmatch(line):
                return b"" if _UNTESTED_MORE in line else line
            self._box = [line]
            return b""
        self._box.append(line)
        if len(self._box) == 2 and not line.startswith((*_OF_FAILED_RANKS, _UNTESTED)):
            return self._let_go()
        if _BORDER.fullmatch(line):
            self._delayed += [] if self._box[1].startswith(_UNTESTED) else self._box
            self._box = None
        return b""

    def finish(self) -> bytes:
        """Return what to show at the end: the boxes held back, unless a message of ours explains them."""
        rest = self._let_go()
        return rest if self._has_ours else b"".join(self._delayed) + rest

    def _let_go(self) -> bytes:
        box, self._box = self._box or [], None
        return b"".join(box)


@contextlib.contextmanager
def quieted(show: Callable[[str], object]) -> Iterator[int]:
    """Yield a descriptor for a launcher's standard error. A thread calls `show` with the text that is to be seen."""
    reading, writing = os.pipe()
    thread = threading.Thread(target=_relay, args=(reading, show), name="errors of the launcher", daemon=True)
    thread.start()
    try:
        yield writing
    finally:
        os.close(writing)
        thread.join(_PATIENCE_SECONDS)


def _relay(reading: int, show: Callable[[str], object]) -> None:
    quieter = Quieter()
    with open(reading, "rb") as stream:
        for line in stream:
            if shown := quieter.feed(line.replace(b"\0", b"")):  # prterun writes NULs; grep would take the log for binary
                show(shown.decode(errors="backslashreplace"))
    if shown := quieter.finish():
        show(shown.decode(errors="backslashreplace"))
