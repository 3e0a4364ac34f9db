"""What the runs of a comparison are doing, for `hvd-async status`."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

from hvd_async.comparison.plan import NOT_RUN, read_entries, read_plan
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
    return [_status(entry.folder, entry.run is not None, entry.fault) for entry in read_entries(output, read_plan(output))]


def _status(folder: pathlib.Path, is_done: bool, fault: str) -> EntryStatus:
    has_begun = RunFolder(folder).config.exists()
    status = read_status(folder) if has_begun else RunStatus(str(folder))
    if is_done:
        return EntryStatus("done", status)
    if status.state in ("running", "perhaps running"):
        return EntryStatus(status.state, status)
    if not has_begun and fault == NOT_RUN:
        return EntryStatus("to do", status)
    return EntryStatus("interrupted" if status.state in ("interrupted", "stopped", "silent") else "failed", status, fault)
