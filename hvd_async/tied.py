"""`python -m hvd_async.tied PARENT ARGUMENT...`: as `python -m hvd_async`, but told to stop when the process PARENT is gone.

For those that start others and may be killed: a run that nobody watches would go on, and write where its successor does.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from hvd_async.__main__ import main

_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


def tie_to(parent: int) -> None:
    """Have SIGTERM sent to this process when `parent`, which must be what started it, ends; at once if it already has."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    tie_to(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
