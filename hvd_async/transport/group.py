"""The ranks of a job: the few collective calls at the start and the end of a run, and failure reports, which cannot wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, Protocol

if TYPE_CHECKING:
    from torch import Tensor


_LARGEST_BYTES = 1 << 30
"""Largest message, since counts stay below 2^31."""


def messages_of(tensor: Tensor) -> Sequence[Tensor]:
    """Return the bytes of contiguous `tensor`, on the CPU, in parts for one message each, which share its memory."""
    import torch  # which a launcher does not need

    return torch.split(tensor.view(-1).view(torch.uint8), _LARGEST_BYTES)


class Group(Protocol):
    """All ranks of a job. Only `allgather` and `broadcast` are collective: all ranks call them, and they block until they
    have."""

    rank: int
    size: int

    def allgather(self, text: str) -> list[str]:
        """Return the `text` of every rank to every rank, in the order of ranks."""

    def broadcast(self, tensor: Tensor) -> None:
        """Set `tensor` (contiguous, on the CPU, of any type and the same on all ranks) to its values on rank 0."""

    def take_lost(self) -> list[int]:
        """Return the ranks that died during calls of `allgather`, which then went on without them, since the last call of this
        function: `rank` and `size` have changed. Empty where a death ends the job."""

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

    def broadcast(self, tensor: Tensor) -> None:
        """Do nothing."""

    def take_lost(self) -> list[int]:
        return []

    def report_failure(self, status: int, text: str) -> bool:
        """Return False: there is no other rank."""
        return False

    def reported_failure(self) -> tuple[int, str] | None:
        return None

    def abort(self, status: int) -> NoReturn:
        raise SystemExit(status)
