"""How a script ends that an error of ours ends: with one line on one rank, and the status of the error."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from hvd_async.cluster.environment import keeps_other_ranks, read_environment
from hvd_async.errors import HvdAsyncError, SetupError
from hvd_async.system.failure_message import tell, wait_for_reporter

_has_hook: list[bool] = []  # once in a process


@contextlib.contextmanager
def on_all_ranks() -> Iterator[None]:
    """Note of errors in the block that every rank has them, so that one rank reports them; a context manager."""
    try:
        yield
    except HvdAsyncError as error:
        error.is_on_all_ranks = True
        raise


def end_with(error: HvdAsyncError, rank: int) -> NoReturn:
    """Print the message of `error` if this rank, number `rank`, is to report it, and end the process with its status."""
    is_reporter = getattr(error, "is_reporter", None)
    if is_reporter is None:
        is_reporter = not error.is_on_all_ranks or rank == 0
    if is_reporter:
        tell(rank, error)
    elif not keeps_other_ranks(os.environ):
        wait_for_reporter(error)
    sys.stdout.flush()
    gc.collect()  # gives back the semaphores of processes that read batches
    os._exit(error.exit_status)


def at_end_of_script(action: Callable[[], None], rank: int) -> None:
    """Call `action` when the main thread has ended, while other threads still take work, as they do not in `atexit`. An error
    ends the process: with its status, or with a traceback and status 1."""

    def act() -> None:
        try:
            action()
        except HvdAsyncError as error:
            end_with(error, rank)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    register: Any = getattr(threading, "_register_atexit", atexit.register)  # what concurrent.futures itself uses
    register(act)


def report_uncaught_errors() -> None:
    """Let an error of ours that nobody catches end the process as `end_with` does, also before and after a run. Other errors go
    to the hook that was set before. Calling it again does nothing."""
    if _has_hook:
        return
    _has_hook.append(True)
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        if isinstance(error, HvdAsyncError):
            end_with(error, _own_rank())
        previous(kind, error, trace)

    sys.excepthook = hook


def _own_rank() -> int:
    with contextlib.suppress(SetupError):  # a variable of the launcher that is no number, which `error` may be about
        if (launched := read_environment(os.environ)) is not None:
            return launched.rank
    return 0
