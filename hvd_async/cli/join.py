"""`hvd-async join`."""

from __future__ import annotations

import argparse
import math
import pathlib

from hvd_async.cli.arguments import verb
from hvd_async.errors import ConfigError


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_join(verb(verbs, "join", "train as one more worker of a run that is under way", _join))


def _add_join(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("joined", type=pathlib.Path, metavar="RUN", help="folder of the run; docs/reliability.md")
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="seconds to wait for a free place among the workers (default 0)",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: as the run's configuration says)")
    parser.add_argument(
        "--trust-task", action="store_true", help="import the code that the run's configuration names as task.factory"
    )


def _join(arguments: argparse.Namespace) -> int:
    from hvd_async.training.stop_request import StopRequest

    if not 0.0 <= arguments.wait < math.inf:
        raise ConfigError(f"--wait: got {arguments.wait:g}, expected 0 or more seconds")
    stop = StopRequest()  # before anything heavy is loaded, so that a signal gets the same answer at every moment
    with stop.listening():
        from hvd_async.tasks.registry import make_task
        from hvd_async.training.join import JoinOptions, join

        join(arguments.joined, make_task, JoinOptions(arguments.wait, arguments.device, arguments.trust_task), stop)
    return 0
