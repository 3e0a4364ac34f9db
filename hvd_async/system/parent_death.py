"""Signal to a process when the process that started it ends, in whatever way."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


def tie_to(parent: int, number: int = signal.SIGTERM) -> None:
    """Have signal `number` sent to this process when `parent`, which must be its parent, ends; at once if the parent has
    already ended.

    On Linux; elsewhere only if it has already ended. Set between fork and exec, it holds for the new program, too.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
