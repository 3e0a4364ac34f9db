"""Arguments of the verbs that use an exported model."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from typing import TYPE_CHECKING

from hvd_async.cli.arguments import check_beam, check_threads, device

if TYPE_CHECKING:
    from hvd_async.tasks.translation.export import ExportedModel


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model, its beam size, and the device and threads on which it runs."""
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL", help="folder such as RUN/models/best")
    parser.add_argument("--beam", type=int, metavar="N", help="beam size; default: the configuration's; 1 is greedy")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda[:INDEX]")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads over which sentences are spread (default: one per core)"
    )


def load(arguments: argparse.Namespace) -> tuple[ExportedModel, int | None]:
    """Return the model, and the number of threads that translate its sentences."""
    from hvd_async.tasks.translation.export import load_model

    check_beam(arguments.beam)
    if arguments.threads is not None:
        check_threads(arguments.threads)
    name = device(arguments.device)
    model = load_model(arguments.model, name)
    if not model.is_finite():
        what = "has parameters that are not finite numbers, since its training diverged; its translations are useless"
        print(f"hvd-async: {arguments.model}: {what}", file=sys.stderr)
    if name != "cpu":
        return model, arguments.threads
    return model, arguments.threads or len(os.sched_getaffinity(0))
