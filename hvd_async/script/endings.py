"""How a script ends that an error of ours ends: with one line on one rank, and the status of the error."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from hvd_async.cluster.environment import keeps_other_ranks, read_environment
from hvd_async.errors import HvdAsyncError, SetupError
from hvd_async.system.failure_message import print_message, tell, wait_for_reporter

_previous: list[
    Callable[[type[BaseException], BaseException, types.TracebackType | None], object]
] = []  # the hook before ours
_urgent: list[HvdAsyncError] = []
_is_store_alone = [False]  # whether this process only held the store in the last run
# What torch says where a script has left its calls in.
_TORCH_DISTRIBUTED = ("Default process group has not been initialized", "Error initializing torch.distributed")


@contextlib.contextmanager
def on_all_ranks() -> Iterator[None]:
    """Note of errors in the block that every rank has them, so that one rank reports them; a context manager."""
    try:
        yield
    except HvdAsyncError as error:
        error.is_on_all_ranks = True
        raise


def end_with(error: HvdAsyncError, rank: int) -> NoReturn:
    """Print the message of `error` if this rank, number `rank`, is to report it, and end the process at once with its status."""
    _report(error, rank)
    gc.collect()  # gives back the semaphores of processes that read batches
    os._exit(error.exit_status)


def _report(error: HvdAsyncError, rank: int) -> None:
    is_reporter = getattr(error, "is_reporter", None)
    if is_reporter is None:
        is_reporter = not error.is_on_all_ranks or rank == 0
    if is_reporter:
        tell(rank, error)
    elif not keeps_other_ranks(os.environ):
        wait_for_reporter(error)
    sys.stdout.flush()


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
    """Let an error of ours that nobody catches end the script in one line, with its status, also before and after a run. Other
    errors go to the hook that was set before. Calling it again does nothing, unless another hook was set meanwhile."""
    if sys.excepthook is not _hook:
        _previous[:] = [sys.excepthook]
        sys.excepthook = _hook


def end_at_once_if_uncaught(error: HvdAsyncError) -> None:
    """Let `error`, for which other ranks may wait, end the process as `end_with` does if nobody catches it."""
    _urgent[:] = [error]


def note_role(*, is_store_alone: bool) -> None:
    """Note whether this process only holds the store, for hints about errors after the run."""
    _is_store_alone[0] = is_store_alone


def _hook(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    is_typed_in = hasattr(sys, "ps1") or sys.flags.interactive  # where an error must not end the session
    if not isinstance(error, HvdAsyncError) or is_typed_in:
        _previous[0](kind, error, trace)
        if hint := hint_about(error):
            print_message(f"hvd-async: rank {_own_rank()}: {hint}\n")
        return
    if any(error is each for each in _urgent):
        end_with(error, _own_rank())
    _report(error, _own_rank())
    _flush_files()
    raise SystemExit(error.exit_status)  # as the script's own, so that what it has registered is called


def hint_about(error: BaseException) -> str:
    """Return a line about an `error` of the script that comes of running with several ranks, for its message; empty if it is none
    that is known."""
    text = str(error)
    if isinstance(error, NameError) and _is_store_alone[0]:
        name = f"`{error.name}`" if error.name else "it"
        return (
            f"this rank only holds the store, and its loop had no batches; if {name} is set in the loop, put what uses it under"
            " `if run.worker is not None:`, and run.save outside of that"
        )
    if any(words in text for words in _TORCH_DISTRIBUTED):
        return (
            "the run does the work of torch.distributed: take init_process_group, DistributedDataParallel and calls of"
            " torch.distributed out of the script (docs/from-ddp.md)"
        )
    if "Horovod has not been initialized" in text:
        return "the run does Horovod's work: take calls of hvd and its optimizer out of the script (docs/from-horovod.md)"
    return ""


def _flush_files() -> None:
    """Write what open files hold back, which Python does not where a hook for uncaught errors ends it."""
    for each in gc.get_objects():
        if issubclass(type(each), io.IOBase):
            with contextlib.suppress(Exception):  # closed, say
                each.flush()


def _own_rank() -> int:
    """Return the rank that the launcher gave this process; 0 without a launcher."""
    with contextlib.suppress(SetupError):  # a variable of the launcher that is no number, which `error` may be about
        if (launched := read_environment(os.environ)) is not None:
            return launched.rank
    return 0
