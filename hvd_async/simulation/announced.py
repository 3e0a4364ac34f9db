"""Which versions gradients are being computed on, as workers tell the store where it asks for that."""

from __future__ import annotations

from collections import Counter


class Announced:
    """Base versions of the gradients that are under way, counted."""

    def __init__(self) -> None:
        """None are."""
        self._counts: Counter[int] = Counter()
        self._oldest = 0

    def add(self, version: int) -> None:
        """One more; never older than the oldest version that anybody still has."""
        self._counts[version] += 1

    def drop(self, version: int) -> None:
        """One less."""
        self._counts[version] -= 1
        if not self._counts[version]:
            del self._counts[version]

    @property
    def oldest(self) -> int | None:
        """The oldest of them."""
        if not self._counts:
            return None
        while self._oldest not in self._counts:
            self._oldest += 1
        return self._oldest
