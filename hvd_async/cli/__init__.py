"""The command line: one module for each verb. A verb reads its arguments, calls the library and prints, and does no more."""

from __future__ import annotations

import argparse

from hvd_async import __version__
from hvd_async.cli import (
    average,
    bench,
    compare,
    data,
    doctor,
    export,
    init,
    join,
    launch,
    replay,
    report,
    score,
    simulate,
    status,
    train,
    translate,
)
from hvd_async.cli.parser import EXIT_STATUS, Parser


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line. Each verb sets `run`, a function from parsed arguments to the exit status."""
    parser = Parser(
        prog="hvd-async",
        description="Train with asynchronous, summed gradients through a parameter store over MPI, or with Horovod or DDP.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hvd_async {__version__}")
    parser.set_defaults(parser=parser)
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for module in (
        init, data, train, launch, join, status, translate, score, average, export, compare, report, simulate, replay, bench,
        doctor,
    ):  # fmt: skip
        module.add_verb(verbs)
    return parser
