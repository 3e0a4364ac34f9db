"""`python -m hvd_async` and the console script `hvd-async`.

`python -m hvd_async --parent PID ARGUMENT...` stops when its parent process PID is gone. Otherwise a run whose launcher was
killed would continue unwatched, and write into the folder of its successor.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from hvd_async.errors import HvdAsyncError, SetupError
from hvd_async.system.extras import missing_package
from hvd_async.system.failure_message import wait_for_reporter
from hvd_async.system.interpreter import end_quickly, leave_out_current_folder
from hvd_async.system.parent_death import tie_to
from hvd_async.system.printable import printable
from hvd_async.system.standard_streams import discard_output, prepare_streams, tell


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status. Errors meant for users are printed without a traceback."""

    def run() -> int:
        from hvd_async.cli import make_parser
        from hvd_async.cli.arguments import check_numbers

        parsed = make_parser().parse_args(arguments)
        check_numbers(parsed)
        status: int = parsed.run(parsed)
        return status

    return report(run)


def report(action: Callable[[], int]) -> int:
    """Run `action`; return its exit status, or that of its error or of a failed standard output. Prints the message."""
    end_quickly()
    if failed := _status(prepare_streams):
        return failed
    try:
        return _flushed(_status(action))
    except SystemExit as ended:  # of a help text or a usage
        if failed := _flushed(int(ended.code or 0)):
            raise SystemExit(failed) from None
        raise


def _flushed(status: int) -> int:
    """Flush the output; return `status`, or the status of a failed flush. An earlier failure, already reported, counts."""
    try:
        sys.stdout.flush()
    except (HvdAsyncError, BrokenPipeError) as error:
        discard_output()
        return status or _status_of(error)
    return status


def _status(action: Callable[[], int | None]) -> int:
    try:
        return action() or 0
    except (HvdAsyncError, KeyboardInterrupt, BrokenPipeError) as error:
        return _status_of(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "hvd_async":
            raise  # our own bug
        return _status_of(missing_package(package))


def _status_of(error: HvdAsyncError | KeyboardInterrupt | BrokenPipeError) -> int:
    """Return the exit status of `error`; print its message if it is meant for users."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):
        return 141  # the reader of our output, such as `head`, has gone
    if _is_ours_to_report(error):
        tell("".join(f"hvd-async: {printable(line)}\n" for line in str(error).split("\n")))
    elif not _has_patient_ranks():
        wait_for_reporter(error)
    return error.exit_status


def _is_ours_to_report(error: HvdAsyncError) -> bool:
    """Whether this process prints `error`: one rank prints an error that all ranks raise; other errors are always
    printed."""
    from hvd_async.cluster.environment import LIKE_TORCHRUN, read_environment

    is_reporter = getattr(error, "is_reporter", None)
    if is_reporter is not None:
        return bool(is_reporter)
    if not error.is_on_all_ranks:
        return True
    try:
        launched = read_environment(os.environ)
    except SetupError:
        return True
    # RANK may be left over in the shell, in which case there may be no rank 0.
    return launched is None or launched.rank == 0 or launched.launcher is LIKE_TORCHRUN


def _has_patient_ranks() -> bool:
    """Whether the end of this rank ends no other: MPI_Finalize waits for all ranks, or the launcher lets them live on."""
    from hvd_async.cluster.environment import keeps_other_ranks

    is_initialised = getattr(sys.modules.get("mpi4py.MPI"), "Is_initialized", None)
    return (is_initialised is not None and bool(is_initialised())) or keeps_other_ranks(os.environ)


if __name__ == "__main__":
    leave_out_current_folder()
    words = sys.argv[1:]
    if words[:1] == ["--parent"]:
        tie_to(int(words[1]))
        words = words[2:]
    sys.exit(main(words))
