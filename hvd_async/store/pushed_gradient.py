"""A gradient in a slot: the whole vector, or only the elements that were sent."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from hvd_async.vectors import arithmetic


@dataclass(frozen=True)
class Gradient:
    """The gradient of one push, or the part that belongs to one shard.

    Either `values` is the whole vector ([size]; float32, bfloat16 or float16) and `indices` is None, or `values` are the
    elements at `indices` ([num] int32, each once) and the others are zero.
    """

    values: torch.Tensor
    largest: float
    """Largest magnitude of the push over all shards: infinite or NaN if an element is."""
    indices: torch.Tensor | None = None
    slot: int = 0
    """Slot that holds the gradient."""

    def on(self, device: torch.device) -> Gradient:
        """Return the gradient on `device`: itself if it is there."""
        if self.values.device == device:
            return self
        indices = None if self.indices is None else self.indices.to(device)
        return dataclasses.replace(self, values=self.values.to(device), indices=indices)

    @classmethod
    def measure(cls, vector: torch.Tensor) -> Gradient:
        """Return a gradient of the whole `vector` ([size], float32), which is read once for its largest magnitude."""
        return cls(vector, arithmetic.copy_and_measure(vector, None))
