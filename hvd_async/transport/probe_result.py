"""What `probe` finds out about MPI; apart from it, so that judging needs no MPI."""

from __future__ import annotations

import dataclasses
from typing import Literal

WindowKind = Literal["shared", "created"]


@dataclasses.dataclass(frozen=True)
class OneSidedProgress:
    """How long one-sided operations took while their target computed without entering MPI."""

    window: WindowKind
    seconds: float
    busy_seconds: float

    @property
    def completed_meanwhile(self) -> bool:
        """Whether they were done long before the target was."""
        return self.seconds < self.busy_seconds / 2


@dataclasses.dataclass(frozen=True)
class Bandwidth:
    """Gigabytes a second, best of a few, of a push and a pull between ranks 0 and 1, and of memcpy: no copy was faster."""

    push: float
    pull: float
    memcpy: float


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """What ranks 0 and 1 found out together."""

    same_host: bool
    progress: tuple[OneSidedProgress, ...]
    bandwidth: Bandwidth
