"""`hvd-async train`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from hvd_async.cli.arguments import (
    add_config,
    verb,
)
from hvd_async.errors import ConfigError, StoppedBySignal

if TYPE_CHECKING:
    from hvd_async.training.stop_request import StopRequest


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_train(verb(verbs, "train", "train one configuration, on all ranks that the launcher started", _train))


def _add_train(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--progress",
        choices=("auto", "bar", "lines"),
        default="auto",
        help="auto (default): a bar on a terminal, but lines under a launcher, which may give its ranks a terminal of its own",
    )
    # Set by `hvd-async launch`, which itself reports how the run ended.
    parser.add_argument("--launched", action="store_true", help=argparse.SUPPRESS)


def _train(arguments: argparse.Namespace) -> int:
    from hvd_async.training.stop_request import StopRequest

    # Before anything heavy is loaded, so that a signal gets the same answer just after the start as later.
    stop = StopRequest()
    try:
        with stop.listening():
            return _train_unless_stopped(arguments, stop)
    except StoppedBySignal as error:
        if arguments.launched:
            error.is_on_all_ranks, error.is_reporter = True, False  # `launch` reports it
        raise


def _train_unless_stopped(arguments: argparse.Namespace, stop: StopRequest) -> int:
    from hvd_async.config import load_config

    try:
        config = load_config(arguments.config, arguments.overrides)
    except ConfigError as error:
        error.is_on_all_ranks = True  # all ranks read the same file
        raise

    from hvd_async.cluster.environment import read_environment
    from hvd_async.runs.summary import summary_lines
    from hvd_async.tasks.registry import make_task
    from hvd_async.training.options import TrainOptions
    from hvd_async.training.run import train

    is_live = arguments.progress == "bar"
    if arguments.progress == "auto":
        is_live = sys.stdout.isatty() and read_environment(os.environ) is None
    options = TrainOptions(
        arguments.resume, arguments.overwrite, is_live, arguments.auto_resume, stop, is_launched=arguments.launched
    )
    summary = train(config, make_task, options)
    if summary and summary["status"] != "stopped":  # a stop is reported by `launch`
        print(*summary_lines(summary, config.output), sep="\n")
    return 0
