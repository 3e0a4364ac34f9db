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
from hvd_async.errors import HvdAsyncError
from hvd_async.system.failure_message import tell, wait_for_reporter


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


def report_if_uncaught(error: HvdAsyncError) -> None:
    """Let the process end as `end_with` does, if nobody catches `error`, which is raised before there is a run, or
    at its end."""
    launched, previous = read_environment(os.environ), sys.excepthook

    def hook(kind: type[BaseException], raised: BaseException, trace: types.TracebackType | None) -> None:
        sys.excepthook = previous
        if raised is error:
            end_with(error, 0 if launched is None else launched.rank)
        previous(kind, raised, trace)

    sys.excepthook = hook
