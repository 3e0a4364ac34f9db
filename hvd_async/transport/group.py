"""The ranks of a job, for the few collective calls that a run makes at its start and its end."""

from __future__ import annotations

from typing import NoReturn, Protocol


class Group(Protocol):
    """All ranks of a job. Every method but `abort` is collective: all ranks call it, and it blocks until they have."""

    rank: int
    size: int

    def exchange(self, text: str) -> list[str]:
        """Give every rank the `text` of every rank, in the order of ranks."""

    def abort(self, status: int) -> NoReturn:
        """End every rank of the job at once with exit status `status`. Not collective; does not return."""


class Solo:
    """A job of one process."""

    rank = 0
    size = 1

    def exchange(self, text: str) -> list[str]:
        """See `Group.exchange`."""
        return [text]

    def abort(self, status: int) -> NoReturn:
        """See `Group.abort`."""
        raise SystemExit(status)
