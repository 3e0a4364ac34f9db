"""The description of a block of memory for a transport: bytes, the first of which are control words."""

from __future__ import annotations

import struct
from typing import Protocol, TypeVar

WORD_BYTES = 8


class Block(Protocol):
    """The properties of a block that a transport needs. The users of the window know what lies where, and what the words
    mean."""

    @property
    def num_words(self) -> int:
        """Number of control words, int64, at the beginning of the block."""

    @property
    def num_elements(self) -> int:
        """Length of the block's float32 vectors where no length is given."""

    @property
    def total_bytes(self) -> int:
        """Size of the block."""

    @property
    def owners_bell(self) -> int:
        """Index of the control word that wakes the owner."""

    @property
    def owners_heartbeat(self) -> int:
        """Index of the control word that the owner changes while it waits."""


BlockT = TypeVar("BlockT", bound=Block)
BlockT_co = TypeVar("BlockT_co", bound=Block, covariant=True)


def float_to_word(value: float) -> int:
    """Return the bits of a double as an int64 control word."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def word_to_float(word: int) -> float:
    """Return the double whose bits `word` holds."""
    return float(struct.unpack("<d", struct.pack("<q", word))[0])
