"""A process that is told to stop when the one that started it is gone, however that ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


def tie_to(parent: int, number: int = signal.SIGTERM) -> None:
    """Have signal `number` sent to this process when `parent`, which must be what started it, ends; at once if it already has.

    On Linux; elsewhere only the latter. Between fork and exec it holds for the new program too.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
