"""Uneven workers on even hardware: a worker idles after its real step. A sleeping rank uses no core."""

from __future__ import annotations

import time

from hvd_async.config import EmulationConfig


class Emulation:
    """Makes one worker's steps last as many times as long as the configuration says."""

    def __init__(self, config: EmulationConfig, worker: int | None) -> None:
        """`worker` is this rank's number among the workers, None for a rank that only stores."""
        self._factor = 1.0 if worker is None else config.slow_workers.get(worker, 1.0)

    def delay(self, seconds: float) -> None:
        """Idle for the rest of a step whose real work took `seconds`."""
        if self._factor > 1.0:
            time.sleep(seconds * (self._factor - 1.0))  # the idling is the purpose
