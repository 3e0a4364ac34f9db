"""How long something may last, where this process may be paused itself."""

from __future__ import annotations

import time


class Patience:
    """How long something may last, counted while this process runs: a pause of the process counts as one look."""

    def __init__(self, seconds: float, look_seconds: float) -> None:
        """`look_seconds`: about the time from one look to the next."""
        self._seconds, self._most = seconds, 2 * look_seconds
        self._left, self._seen = seconds, time.monotonic()

    def is_over(self, *, lasts: bool) -> bool:
        """Return whether it has lasted too long; `lasts`: whether it did at this look."""
        now = time.monotonic()
        self._left = self._left - min(now - self._seen, self._most) if lasts else self._seconds
        self._seen = now
        return self._left < 0
