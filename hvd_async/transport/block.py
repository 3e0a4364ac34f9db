"""What a block of memory is to those who carry it: bytes, of which the first are control words."""

from __future__ import annotations

import struct
from typing import Protocol, TypeVar

WORD_BYTES = 8


class Block(Protocol):
    """What a transport knows of a block. What lies where in it, and what its words mean, is for those who use the window."""

    @property
    def num_words(self) -> int:
        """Control words, int64, at the beginning of the block."""

    @property
    def num_elements(self) -> int:
        """Length of the float32 vectors in the block, where nothing else is said."""

    @property
    def total_bytes(self) -> int:
        """Size of the block."""

    @property
    def owners_bell(self) -> int:
        """The control word by which the owner is woken."""

    @property
    def owners_heartbeat(self) -> int:
        """The control word that the owner changes while it waits."""


BlockT = TypeVar("BlockT", bound=Block)
BlockT_co = TypeVar("BlockT_co", bound=Block, covariant=True)


def float_to_word(value: float) -> int:
    """Return the bits of a double as an int64 control word."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def word_to_float(word: int) -> float:
    """Return the double whose bits `word` holds."""
    return float(struct.unpack("<d", struct.pack("<q", word))[0])
