"""A column of control words: the same word of many parts of a block, compared at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from hvd_async.transport.block import WORD_BYTES


class _Mapped(Protocol):
    """The part of the own block's memory that a column needs."""

    def vector(self, offset: int, count: int | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor: ...


class WordColumn:
    """One word of each of many like parts of the own block, such as all slots, beside the values that are known of them.

    Reading each word by itself costs about a microsecond, and an idle store with hundreds of workers would do nothing else.
    """

    def __init__(self, memory: _Mapped, first: int, stride: int, known: Sequence[int]) -> None:
        """`first`: index of the word of part 0; `stride`: words from one part to the next; `known`: a value for each part."""
        words = memory.vector(WORD_BYTES * first, stride * (len(known) - 1) + 1, torch.int64)
        self._words = words.numpy()[::stride]
        self._known = np.array(known, dtype=np.int64)

    def know(self, part: int, value: int) -> None:
        """Note that `value` of `part` is known from now on."""
        self._known[part] = value

    def changed(self) -> list[int]:
        """Return the parts whose word is another than is known, in order.

        A hint: it orders no other memory. Load the word before you read what it announces. What is missed is found by the next
        call.
        """
        found: list[int] = np.flatnonzero(self._words != self._known).tolist()
        return found
