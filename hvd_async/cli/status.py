"""`hvd-async status`."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections import Counter

from hvd_async.cli.arguments import verb
from hvd_async.errors import DataError


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_status(verb(verbs, "status", "say whether a run, or a suite, is alive and how far along it is", _status))


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=pathlib.Path, metavar="RUN", help="folders of runs, or of comparisons; they are only read"
    )
    parser.add_argument("--json", action="store_true", help="print an object of JSON for each run, one a line")


def _status(arguments: argparse.Namespace) -> int:
    from hvd_async.comparison.plan import has_plan

    faults = []
    for folder in arguments.runs:
        try:
            if has_plan(folder):
                _print_suite(folder, as_json=arguments.json)
            else:
                _print_run(folder, as_json=arguments.json)
        except DataError as error:
            faults.append(str(error))
    if faults:  # after all that is known
        raise DataError("\n".join(faults))
    return 0


def _print_run(folder: pathlib.Path, *, as_json: bool) -> None:
    from hvd_async.runs.status import read_status

    status = read_status(folder)
    print(json.dumps(status.to_json(), allow_nan=False) if as_json else "\n".join(status.lines()))


def _print_suite(folder: pathlib.Path, *, as_json: bool) -> None:
    """Print the state of every run of the comparison in `folder`; in words only of those that have not ended well."""
    from hvd_async.comparison.suite_status import suite_status

    entries = suite_status(folder)
    if as_json:
        for entry in entries:
            print(json.dumps({**entry.status.to_json(), "state": entry.state, "fault": entry.fault}, allow_nan=False))
        return
    counts = Counter(entry.state for entry in entries)
    print(f"{folder}: {', '.join(f'{count} {state}' for state, count in counts.items())}, {len(entries)} runs in all")
    for entry in entries:
        if entry.state == "done":
            continue
        lines = entry.status.lines() if entry.status.processes else [f"{entry.status.folder}: {entry.state}"]
        print("\n".join([*lines, *([f"  {entry.fault}"] if entry.fault and entry.state == "failed" else [])]))
