"""Which batches have had their fate decided, so that a resumed run computes exactly the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClaimOrder:
    """Maps claims, counted from 0 in this process, to batch numbers: first those that went missing, then new ones."""

    missing: tuple[int, ...] = ()
    first_new: int = 0

    def batch(self, claim: int) -> int:
        """The number of the batch that belongs to the `claim`-th claim."""
        if claim < len(self.missing):
            return self.missing[claim]
        return self.first_new + claim - len(self.missing)


class BatchLedger:
    """The set of batch numbers that arrived, kept small: all below `watermark`, and a few above it."""

    def __init__(self, watermark: int = 0, above: Iterable[int] = ()) -> None:
        """Continue from `watermark` and the numbers `above` it."""
        self.watermark = watermark
        self._above = set(above)

    def record(self, batch: int) -> None:
        """Raises `ValueError` if `batch` was recorded before: a gradient is applied exactly once."""
        if batch < self.watermark or batch in self._above:
            raise ValueError(f"batch {batch} arrived twice")
        self._above.add(batch)
        while self.watermark in self._above:
            self._above.remove(self.watermark)
            self.watermark += 1

    def without(self, batches: Sequence[int]) -> BatchLedger:
        """A ledger in which `batches`, recorded here, have not arrived."""
        if not batches:
            return BatchLedger(self.watermark, self._above)
        watermark = min(self.watermark, *batches)
        recorded = self._above.union(range(watermark, self.watermark))
        return BatchLedger(watermark, recorded.difference(batches))

    def claim_order(self) -> ClaimOrder:
        """The order in which a run that continues from here computes its batches."""
        if not self._above:
            return ClaimOrder((), self.watermark)
        end = max(self._above) + 1
        return ClaimOrder(tuple(b for b in range(self.watermark, end) if b not in self._above), end)

    def to_json(self) -> dict[str, object]:
        """Plain data for a checkpoint; `BatchLedger(**data)` reads it back."""
        return {"watermark": self.watermark, "above": sorted(self._above)}
