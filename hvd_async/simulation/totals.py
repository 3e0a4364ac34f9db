"""Where the time of a simulated run goes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Totals:
    """Seconds of all workers together, and of the store."""

    present: float = 0.0
    """Until each worker left."""
    computing: float = 0.0
    pushing: float = 0.0
    pulling: float = 0.0
    arrivals: float = 0.0
    updates: float = 0.0

    @property
    def waiting(self) -> float:
        """For the store or for others; with overlap, less what was computed meanwhile."""
        return max(0.0, self.present - self.computing - self.pushing - self.pulling)
