"""A record of what a step writes over old values, in memory that outlives the process, so that another can complete the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MAX_RANGES = 32
"""Ranges that a step may work on at once, in as many threads."""
AREA_BYTES = 6176
"""Size of an area, as `_native.c` has it."""
_HEADER_WORDS = 8
_BEGUN, _NUM_RANGES = 0, 1
# Parts of a version: groups of parameters. More than any optimizer has.
_PARTS = 1 << 20
REDO_BYTES = 8 * _HEADER_WORDS + 2 * MAX_RANGES * AREA_BYTES
"""Size of the memory for the record of one shard's steps."""


@dataclass(frozen=True)
class StepProgress:
    """How far steps have come: the parts of `version` before number `part` are made, that one was begun, and none after it."""

    version: int
    part: int


class Redo:
    """The record of one shard's steps, each of which has one or several parts. Used by one thread.

    A part works on ranges of its elements, which have an area each, where the loop that makes the step puts each piece before it
    writes it over the old values. Two sets of areas are used in turn, so that one is being prepared while the other still says
    where the part before ended. A process that dies loses none of the stores that it has made, so their order is all that counts.
    """

    def __init__(self, memory: torch.Tensor) -> None:
        """`memory` ([`REDO_BYTES`] uint8, zeros at first) stays the caller's, and has what an earlier process left in it."""
        self._words = memory.view(torch.int64).numpy()
        self._address = memory.data_ptr()

    @property
    def progress(self) -> StepProgress:
        """How far steps have come."""
        return StepProgress(*divmod(int(self._words[_BEGUN]), _PARTS))

    def begin(self, progress: StepProgress, bounds: Sequence[tuple[int, int]]) -> list[int]:
        """Note that a part is begun, on at most `MAX_RANGES` ranges with these `bounds`; return the address of each area."""
        areas = self._areas(progress.part, len(bounds))
        for area, (start, end) in zip(areas, bounds, strict=True):
            first = (area - self._address) // 8
            self._words[first] = -1 - start
            self._words[first + 1] = end
        self._words[_NUM_RANGES + progress.part % 2] = len(bounds)
        self._words[_BEGUN] = progress.version * _PARTS + progress.part  # last: it says which areas count
        return areas

    def end(self, version: int, num_parts: int) -> None:
        """Note that all parts of `version` are made."""
        self._words[_BEGUN] = version * _PARTS + num_parts

    def under_way(self) -> list[tuple[int, int]]:
        """Return the address and the end of each range of the part that was begun last."""
        part = self.progress.part
        areas = self._areas(part, int(self._words[_NUM_RANGES + part % 2]))
        return [(area, int(self._words[(area - self._address) // 8 + 1])) for area in areas]

    def _areas(self, part: int, count: int) -> list[int]:
        first = self._address + 8 * _HEADER_WORDS + part % 2 * MAX_RANGES * AREA_BYTES
        return [first + number * AREA_BYTES for number in range(count)]


@dataclass(frozen=True)
class RedoPart:
    """One part of a step as `redo` records it; `is_again`: a process that has died began it."""

    redo: Redo
    progress: StepProgress
    is_again: bool = False
