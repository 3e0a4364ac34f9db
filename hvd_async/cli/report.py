"""`hvd-async report`."""

from __future__ import annotations

import argparse
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hvd_async.cli.arguments import check_folder, verb
from hvd_async.errors import ConfigError, DataError
from hvd_async.system.extras import require

if TYPE_CHECKING:
    from hvd_async.comparison.collection import Collection
    from hvd_async.comparison.target import WantedTarget


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_report(verb(verbs, "report", "compare finished runs: tables, figures and one page", _report))


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=pathlib.Path, metavar="RUN", help="folders of runs, or the one folder of a comparison"
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        metavar="FOLDER",
        help="default: RUN/report for one folder, report in the current folder for several",
    )
    parser.add_argument("--overwrite", action="store_true", help="also replace files that do not belong to a report")
    parser.add_argument(
        "--baseline", metavar="NAME", help="run that the others are compared with (default: the suite's, or the first run)"
    )
    parser.add_argument(
        "--target",
        metavar="NAME=VALUE",
        help="validation score that runs are timed to, such as loss=2.5; NAME: a metric of the runs",
    )
    parser.add_argument(
        "--window",
        metavar="START:SECONDS",
        help="part of the run that the timeline shows, in seconds of training (default: some steps in the middle)",
    )


def _report(arguments: argparse.Namespace) -> int:
    from hvd_async.comparison.from_folders import gather

    wanted = None if arguments.target is None else _wanted_target(arguments.target)
    window = None if arguments.window is None else _window(arguments.window)
    require("report")
    for folder in arguments.runs:
        if not folder.is_dir():
            raise DataError(
                f"{folder}: {'got a file' if folder.exists() else 'no such folder'}, expected the folder of a run"
            )
    if repeated := [run for number, run in enumerate(arguments.runs) if run in arguments.runs[:number]]:
        raise ConfigError(f"RUN: got {repeated[0]} twice, expected each run once")
    output = _default_output(arguments.runs) if arguments.output is None else arguments.output
    check_folder(output)
    collection = gather(arguments.runs, arguments.baseline, wanted)
    longest = max((entry.run.seconds for entry in collection.entries if entry.run is not None), default=0.0)
    if window is not None and window[0] >= longest:
        raise ConfigError(
            f"--window: got a start at {window[0]:g} s, expected one before {longest:.1f} s, the end of the runs"
        )
    write_report_to(collection, output, window, overwrite=arguments.overwrite)
    return 0


def _default_output(runs: Sequence[pathlib.Path]) -> pathlib.Path:
    """Return the folder of a report without --output: inside the one folder given, as `compare` has it, so that it does not
    depend on where the command is run. Several folders have no such place in common."""
    return runs[0] / "report" if len(runs) == 1 else pathlib.Path("report")


def _wanted_target(text: str) -> WantedTarget:
    from hvd_async.comparison.target import WantedTarget

    name, _, value = text.partition("=")
    try:
        if math.isfinite(float(value)):
            return WantedTarget(name.strip(), float(value))
    except ValueError:
        pass
    raise ConfigError(f"--target: got {text!r}, expected NAME=VALUE, such as loss=2.5")


def _window(text: str) -> tuple[float, float]:
    try:
        start, seconds = (float(part) for part in text.split(":"))
        if start >= 0.0 and 0.0 < seconds < math.inf:
            return start, seconds
    except ValueError:
        pass
    raise ConfigError(f"--window: got {text!r}, expected START:SECONDS, such as 120:15")


def write_report_to(
    collection: Collection, output: pathlib.Path, window: tuple[float, float] | None, *, overwrite: bool
) -> None:
    """Write the report of `collection` into `output` and print its answer. `window`: start and length of the timeline [s]."""
    from hvd_async.comparison.results import results
    from hvd_async.report import TimeWindow, text_of, write_report

    rows = results(collection)
    paths = write_report(collection, output, None if window is None else TimeWindow(*window), rows, overwrite=overwrite)
    print(text_of(collection, rows))
    print("written: " + ", ".join(str(path) for path in paths if path.parent == output))
