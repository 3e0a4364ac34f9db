"""The ranks of a job: the few collective calls at the start and the end of a run, and failure reports, which cannot wait."""

from __future__ import annotations

from typing import NoReturn, Protocol


class Group(Protocol):
    """All ranks of a job. Only `allgather` is collective: all ranks call it, and it blocks until they have."""

    rank: int
    size: int

    def allgather(self, text: str) -> list[str]:
        """Return the `text` of every rank to every rank, in the order of ranks."""

    def report_failure(self, status: int, text: str) -> bool:
        """Tell rank 0 that this rank has failed and wants the job to end with exit status `status`, which rank 0 does
        after it has printed `text` and saved its state. Returns at once, with whether rank 0 can be told."""

    def reported_failure(self) -> tuple[int, str] | None:
        """Return, on rank 0, the exit status and the text that another rank has reported, or None. Any thread may ask."""

    def abort(self, status: int) -> NoReturn:
        """End every rank of the job at once with exit status `status`. Does not return."""


class Solo:
    """A job of one process."""

    rank = 0
    size = 1

    def allgather(self, text: str) -> list[str]:
        return [text]

    def report_failure(self, status: int, text: str) -> bool:
        """Return False: there is no other rank."""
        return False

    def reported_failure(self) -> tuple[int, str] | None:
        return None

    def abort(self, status: int) -> NoReturn:
        raise SystemExit(status)
