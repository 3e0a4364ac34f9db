"""The ranks of a job, for the few collective calls that a run makes at its start and its end, and for what cannot wait."""

from __future__ import annotations

from typing import NoReturn, Protocol


class Group(Protocol):
    """All ranks of a job. Only `allgather` is collective: all ranks call it, and it blocks until they have."""

    rank: int
    size: int

    def allgather(self, text: str) -> list[str]:
        """Give every rank the `text` of every rank, in the order of ranks."""

    def report_failure(self, status: int) -> bool:
        """Tell rank 0 that this rank fails and is to end the job with exit status `status`, which rank 0 does when it has saved
        what it has. Returns at once: whether there is a way to tell it."""

    def reported_failure(self) -> int | None:
        """Return, on rank 0, the exit status that another rank has reported, if one has. Any thread may ask."""

    def abort(self, status: int) -> NoReturn:
        """End every rank of the job at once with exit status `status`. Does not return."""


class Solo:
    """A job of one process."""

    rank = 0
    size = 1

    def allgather(self, text: str) -> list[str]:
        """See `Group.allgather`."""
        return [text]

    def report_failure(self, status: int) -> bool:
        """See `Group.report_failure`: there is no other rank."""
        return False

    def reported_failure(self) -> int | None:
        """See `Group.reported_failure`."""
        return None

    def abort(self, status: int) -> NoReturn:
        """See `Group.abort`."""
        raise SystemExit(status)
