"""A gradient as it lies in a slot: whole, or the few elements of it that were sent."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hvd_async.vectors import arithmetic


@dataclass(frozen=True)
class Gradient:
    """What one push brought, or the part of it that belongs to one shard.

    Either `values` is the whole vector ([size]; float32, bfloat16 or float16) and `indices` is None, or `values` are the
    elements at `indices` ([num] int32, each once) and the others are zero.
    """

    values: torch.Tensor
    largest: float
    """The largest magnitude of all that was pushed, on all shards: infinite or NaN if an element is."""
    indices: torch.Tensor | None = None
    slot: int = 0
    """The slot in which it lies."""

    @classmethod
    def measure(cls, vector: torch.Tensor) -> Gradient:
        """The whole `vector` ([size], float32), read once to find its largest magnitude."""
        return cls(vector, arithmetic.copy_and_measure(vector, None))
