"""`python -m hvd_async` and the console script `hvd-async`.

`python -m hvd_async --parent PID ARGUMENT...` stops when the process PID, which started it, is gone. A run whose starter was
killed would otherwise train on unwatched, and write where its successor does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from hvd_async.errors import HvdAsyncError, SetupError
from hvd_async.system.interpreter import end_quickly, leave_out_current_folder
from hvd_async.system.openmp import bound_spinning
from hvd_async.system.parent_death import tie_to
from hvd_async.system.printable import printable
from hvd_async.system.standard_streams import discard_output, prepare_streams, tell


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. Errors meant for a user become one message without a traceback."""
    bound_spinning(os.environ)

    def run() -> int:
        from hvd_async.cli import make_parser
        from hvd_async.cli.arguments import check_numbers

        parsed = make_parser().parse_args(arguments)
        check_numbers(parsed)
        status: int = parsed.run(parsed)
        return status

    return report(run)


def report(action: Callable[[], int]) -> int:
    """Do `action`; its exit status, or that of the error it raised, or of standard output's failure. Prints the message."""
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
    """`status`, or that of a failure to write the last of the output; what failed before has been told, and counts."""
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
            raise  # a fault of ours
        hint = "run launch/setup.sh, or install hvd_async with what it depends on"
        return _status_of(SetupError(f"{package}: this package is not installed in {sys.prefix}; {hint}"))


def _status_of(error: HvdAsyncError | KeyboardInterrupt | BrokenPipeError) -> int:
    """The exit status that `error` means; prints the message of one that is meant for a user."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):
        return 141  # the reader of our output has gone, as `head` does
    if _is_ours_to_report(error):
        tell("".join(f"hvd-async: {printable(line)}\n" for line in str(error).split("\n")))
    return error.exit_status


def _is_ours_to_report(error: HvdAsyncError) -> bool:
    """What every rank of a job raises alike, one of them tells; anything else is told by whoever meets it."""
    from hvd_async.cluster.environment import TORCHRUN, read_environment

    is_reporter = getattr(error, "is_reporter", None)
    if is_reporter is not None:
        return bool(is_reporter)
    if not error.is_on_all_ranks:
        return True
    try:
        launched = read_environment(os.environ)
    except SetupError:
        return True
    # A RANK may be left over from anything, and then there is no rank 0.
    return launched is None or launched.rank == 0 or launched.launcher is TORCHRUN


if __name__ == "__main__":
    leave_out_current_folder()
    words = sys.argv[1:]
    if words[:1] == ["--parent"]:
        tie_to(int(words[1]))
        words = words[2:]
    sys.exit(main(words))
