"""`python -m hvd_async` and the console script `hvd-async`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from hvd_async.errors import HvdAsyncError, SetupError
from hvd_async.printable import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. Errors meant for a user become one message without a traceback."""
    from hvd_async.cli import make_parser
    from hvd_async.cli.arguments import check_numbers

    parsed = make_parser().parse_args(arguments)

    def run() -> int:
        check_numbers(parsed)
        status: int = parsed.run(parsed)
        return status

    return report(run)


def report(action: Callable[[], int]) -> int:
    """Do `action`; its exit status, or that of the error it raised, which one rank of the job prints."""
    try:
        return action()
    except HvdAsyncError as error:
        if _is_ours_to_report(error):
            sys.stdout.flush()
            sys.stderr.write("".join(f"hvd-async: {printable(line)}\n" for line in str(error).split("\n")))
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _is_ours_to_report(error: HvdAsyncError) -> bool:
    """Every rank that a launcher started meets the same fault: one of them says so."""
    from hvd_async.environment import read_environment

    is_reporter = getattr(error, "is_reporter", None)
    if is_reporter is not None:
        return bool(is_reporter)
    try:
        launched = read_environment(os.environ)
    except SetupError:
        return True
    return launched is None or launched.rank == 0


if __name__ == "__main__":
    sys.exit(main())
