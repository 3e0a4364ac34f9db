"""The message of a failing rank, printed once."""

from __future__ import annotations

import contextlib
import sys
import traceback

from hvd_async.errors import HvdAsyncError, PeerError
from hvd_async.system.printable import printable_lines


def tell(rank: int, error: BaseException) -> None:
    """Print why `rank` fails, at once and once, since saving may take a while. Prints nothing for an error that another
    rank reports."""
    if getattr(error, "is_told", False) or (isinstance(error, PeerError) and error.is_reported):
        return
    error.is_told = True  # type: ignore[attr-defined]  # it travels with the exception to whoever ends the job
    if isinstance(error, KeyboardInterrupt):
        text = f"hvd-async: rank {rank}: interrupted; what was saved before is complete\n"
    elif isinstance(error, HvdAsyncError):
        text = f"hvd-async: rank {rank}: {printable_lines(str(error))}\n"
    else:
        trace = "".join(traceback.format_exception(error))
        text = f"{trace}hvd-async: rank {rank}: {type(error).__name__}: {error}\n"
    with contextlib.suppress(OSError):  # stderr has no reader any more
        sys.stdout.flush()
        sys.stderr.write(text)
        sys.stderr.flush()
