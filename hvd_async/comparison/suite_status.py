"""The states of the runs of a comparison, for `hvd-async status`."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

from hvd_async.comparison.collection import NOT_RUN, OUTDATED, Entry
from hvd_async.comparison.plan import fault_file, folder_of, read_entries, read_plan, result
from hvd_async.comparison.runs import Run
from hvd_async.runs.folder import RunFolder
from hvd_async.runs.status import RunStatus, read_status


@dataclass(frozen=True)
class EntryStatus:
    """A run of a comparison. `state`: `done`, `failed` (`fault` says why), `to do`, `interrupted`, or that of `status` while
    the run is under way."""

    state: str
    status: RunStatus
    fault: str = ""


def suite_status(output: pathlib.Path) -> list[EntryStatus]:
    """Return the state of every run of the comparison in `output`, in the order of a report. Raises `DataError` if the plan is
    missing or damaged, or a folder cannot be read."""
    plan = read_plan(output)
    entries = {entry.folder: entry for entry in read_entries(output, plan)}
    return [
        _status(folder, entry, functools.partial(result, output, planned), fault_file(output, planned).exists())
        for planned in plan.runs
        if (entry := entries.get(folder := folder_of(output, planned))) is not None
    ]


def _status(folder: pathlib.Path, entry: Entry, read_again: Callable[[], Run | str], has_failed: bool) -> EntryStatus:
    status = read_status(folder) if RunFolder(folder).config.exists() else RunStatus(str(folder))
    found = entry.run or entry.fault
    if not isinstance(found, Run) and not status.is_under_way and status.state != "not begun":
        found = read_again()  # it may have ended since
    if isinstance(found, Run):
        return EntryStatus("done", status)
    if status.is_under_way:
        return EntryStatus(status.state, status)
    if has_failed:
        return EntryStatus("failed", status, found)
    if found in (NOT_RUN, OUTDATED) or status.state == "not begun":
        return EntryStatus("to do", status)
    return EntryStatus("interrupted" if status.state in ("interrupted", "stopped", "silent") else "failed", status, found)
