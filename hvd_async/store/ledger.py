"""Record of the batches whose outcome is decided, so that a resumed run computes exactly the others."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClaimOrder:
    """Maps claims, counted from 0 in this process, to batch numbers: missing batches first, then new ones."""

    missing: tuple[int, ...] = ()
    first_new: int = 0

    def batch(self, claim: int) -> int:
        """Return the batch number of the `claim`-th claim."""
        if claim < len(self.missing):
            return self.missing[claim]
        return self.first_new + claim - len(self.missing)


class BatchLedger:
    """Set of the batch numbers that arrived, stored compactly: all below `watermark`, and a few above it."""

    def __init__(self, watermark: int = 0, above: Iterable[int] = ()) -> None:
        """Continue from `watermark` and the numbers `above` it."""
        self.watermark = watermark
        self._above = set(above)

    def record(self, batch: int) -> None:
        """Record `batch`. Raises `ValueError` if it was recorded before: a gradient is applied at most once."""
        if batch < self.watermark or batch in self._above:
            raise ValueError(f"batch {batch} arrived twice")
        self._above.add(batch)
        while self.watermark in self._above:
            self._above.remove(self.watermark)
            self.watermark += 1

    def without(self, batches: Sequence[int]) -> BatchLedger:
        """Return a copy of this ledger without `batches`, which are recorded here."""
        if not batches:
            return BatchLedger(self.watermark, self._above)
        watermark = min(self.watermark, *batches)
        recorded = self._above.union(range(watermark, self.watermark))
        return BatchLedger(watermark, recorded.difference(batches))

    def claim_order(self) -> ClaimOrder:
        """Return the order in which a run resumed from this state computes its batches."""
        if not self._above:
            return ClaimOrder((), self.watermark)
        end = max(self._above) + 1
        return ClaimOrder(tuple(b for b in range(self.watermark, end) if b not in self._above), end)

    def open_from(self, first: int) -> Iterator[int]:
        """Yield, without end, the batches from `first` on that are not recorded, in order."""
        for batch in itertools.count(max(first, self.watermark)):
            if batch not in self._above:
                yield batch

    def __contains__(self, batch: object) -> bool:
        """Whether `batch` is recorded."""
        return isinstance(batch, int) and (batch < self.watermark or batch in self._above)

    def first_open(self, returned: Collection[int]) -> int:
        """Return the first batch that is neither recorded nor among `returned`."""
        batch = self.watermark
        while batch in self._above or batch in returned:
            batch += 1
        return batch

    def num_missing(self, num_batches: int) -> int:
        """Return how many of the first `num_batches` batches are not recorded."""
        recorded = min(self.watermark, num_batches) + sum(batch < num_batches for batch in self._above)
        return num_batches - recorded

    def to_json(self) -> dict[str, object]:
        """Return plain data for a checkpoint; `BatchLedger(**data)` restores the ledger."""
        return {"watermark": self.watermark, "above": sorted(self._above)}
