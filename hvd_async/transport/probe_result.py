"""Results of `probe`, in a module of their own, so that judging them needs no MPI."""

from __future__ import annotations

import dataclasses
from typing import Literal

WindowKind = Literal["shared", "created"]


@dataclasses.dataclass(frozen=True)
class OneSidedProgress:
    """Durations of one-sided operations while their target computed without entering MPI."""

    window: WindowKind
    seconds: float
    busy_seconds: float

    @property
    def completed_meanwhile(self) -> bool:
        """Whether the operations were complete long before the target was."""
        return self.seconds < self.busy_seconds / 2


@dataclasses.dataclass(frozen=True)
class Bandwidth:
    """Gigabytes per second, best of a few, of a push and a pull between ranks 0 and 1, and of memcpy, which bounds both."""

    push: float
    pull: float
    memcpy: float


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """Joint results of ranks 0 and 1."""

    same_host: bool
    progress: tuple[OneSidedProgress, ...]
    bandwidth: Bandwidth
