"""Where the parts of a flat vector lie that an optimizer must know: groups of parameters, and matrices."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass


@dataclass(frozen=True)
class Matrix:
    """A matrix whose elements are side by side, row by row, from `start` of a vector; that is a multiple of
    `arithmetic.BLOCK`."""

    start: int
    rows: int
    columns: int

    @property
    def stop(self) -> int:
        """The first element after it."""
        return self.start + self.rows * self.columns


@dataclass(frozen=True)
class VectorMap:
    """`groups`: the elements of each group of parameters, by its number, without gaps; each starts at a multiple of
    `arithmetic.BLOCK`. `matrices`: those that an optimizer updates as a whole, in order, before the other elements of their
    group."""

    groups: tuple[slice, ...]
    matrices: tuple[Matrix, ...] = ()

    @classmethod
    def of_size(cls, size: int) -> VectorMap:
        """Return the map of a vector of one group without matrices."""
        return cls((slice(0, size),))

    def within(self, part: slice) -> VectorMap:
        """Return what lies in `part`, counted from its start; a matrix is in it as a whole or not at all."""
        ends = [max(0, min(each.stop, part.stop) - part.start) for each in self.groups]
        groups = tuple(slice(start, end) for start, end in itertools.pairwise([0, *ends]))
        own = [each for each in self.matrices if part.start <= each.start < part.stop]
        assert all(each.stop <= part.stop for each in own), "a matrix is cut"
        return VectorMap(groups, tuple(dataclasses.replace(each, start=each.start - part.start) for each in own))
