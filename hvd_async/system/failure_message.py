"""The message of a failing rank, printed once."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
import types

from hvd_async.errors import HvdAsyncError, PeerError, StoppedBySignal
from hvd_async.system.printable import printable_lines

_REPORTER_SECONDS = 5.0
"""How long the rank that prints a message may be behind one that prints none."""

_origin: list[tuple[BaseException, types.TracebackType | None, str]] = []  # the last


def tell(rank: int, error: BaseException) -> None:
    """Print why `rank` fails, at once and once, since saving may take a while. Prints nothing for an error that another
    rank reports."""
    text = message_of(rank, error)
    note_told(error)
    print_message(text)


def note_told(error: BaseException) -> None:
    """Note that `error` needs no message any more: it was printed, or another rank prints it."""
    with contextlib.suppress(Exception):  # of a class that takes no attributes, which is then told again
        error.is_told = True  # type: ignore[attr-defined]  # it travels with the exception to whoever ends the job


def note_origin(error: BaseException, trace: types.TracebackType | None, hint: str = "") -> None:
    """Note that `error`, which ends this process, was raised at `trace`, for its message: not in the contexts of ours that see it
    pass. `hint`: what the message ends with. Nothing is set on `error`, which may be of a class of the user's that forbids it."""
    _origin[:] = [(error, trace, hint)]


def message_of(rank: int, error: BaseException) -> str:
    """Return the text that says why `rank` fails; empty if it was printed before, or another rank reports it."""
    if getattr(error, "is_told", False) or (isinstance(error, PeerError) and error.is_reported):
        return ""
    if isinstance(error, KeyboardInterrupt):
        return f"hvd-async: rank {rank}: interrupted; what was saved before is complete\n"
    if isinstance(error, HvdAsyncError):
        return f"hvd-async: rank {rank}: {printable_lines(str(error))}\n"
    origin, hint = next(((trace, hint) for noted, trace, hint in _origin if noted is error), (error.__traceback__, ""))
    trace = "".join(traceback.format_exception(type(error), error, origin))
    lines = [f"{type(error).__name__}: {error}", *([hint] if hint else [])]
    return trace + "".join(f"hvd-async: rank {rank}: {line}\n" for line in lines)


def print_message(text: str) -> None:
    """Print `text` after everything that this process printed before."""
    with contextlib.suppress(OSError):  # stderr has no reader any more
        sys.stdout.flush()
        sys.stderr.write(text)
        sys.stderr.flush()


def wait_for_reporter(error: HvdAsyncError) -> None:
    """Wait on a rank that prints no message for `error`, until the launcher ends it; at most some seconds.

    mpirun and torchrun end all ranks when the first one fails: if that were this rank, the one that prints might never do so.
    """
    if not isinstance(error, StoppedBySignal):  # which `launch` itself may report
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(_REPORTER_SECONDS)
