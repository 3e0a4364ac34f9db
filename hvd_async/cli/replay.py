"""`hvd-async replay`."""

from __future__ import annotations

import argparse
import pathlib

from hvd_async.cli.arguments import check_threads, verb


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_replay(verb(verbs, "replay", "compute a recorded run again and compare it, to the last bit", _replay))


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("replayed", type=pathlib.Path, metavar="RUN", help="folder of the run; docs/replay.md")
    parser.add_argument("--until", type=int, metavar="VERSION", help="stop at this version")
    parser.add_argument(
        "--output", type=pathlib.Path, metavar="FOLDER", help="write the model of the last replayed version to this folder"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model in that folder")
    parser.add_argument(
        "--trust-task", action="store_true", help="import the code that the run's configuration names as task.factory"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="compute with N threads instead of the recorded number")


def _replay(arguments: argparse.Namespace) -> int:
    from hvd_async.replay.replay import ReplayOptions, replay
    from hvd_async.tasks.registry import make_task

    if arguments.threads is not None:
        check_threads(arguments.threads)
    options = ReplayOptions(arguments.until, arguments.output, arguments.overwrite, arguments.threads, arguments.trust_task)
    verdict = replay(arguments.replayed, make_task, options)
    print(f"equal: {verdict}, all to the last bit")
    if arguments.output is not None:
        print(f"{arguments.output}: the model of version {verdict.versions}")
    return 0
