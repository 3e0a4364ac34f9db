"""What the sequencer tells the other shards to do: a few words in their blocks, carried out in order."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from hvd_async.store.wire.layout import ORDER_WORDS
from hvd_async.transport.block import float_to_word, word_to_float


class OrderKind(enum.IntEnum):
    """The methods of `Shard`, and the end."""

    ADD = 1
    COMPENSATE = 2
    FLUSH = 3
    NORM = 4
    STEP = 5
    DISCARD = 6
    FORGET = 7
    END = 8
    PROVISIONAL_STEP = 9


@dataclass(frozen=True)
class Order:
    """One of them, with the arguments that it needs; the others are left at 0."""

    kind: OrderKind
    slot: int = 0
    """Of ADD and COMPENSATE; of PROVISIONAL_STEP, the number of what it makes."""
    version: int = 0
    number: float = 0.0
    """Divisor of ADD, NORM, STEP and PROVISIONAL_STEP; weight of COMPENSATE."""
    learning_rate: float = 0.0
    clip: float = 0.0

    def to_words(self) -> list[int]:
        """The order as control words."""
        words = [self.kind, self.slot, self.version, *map(float_to_word, (self.number, self.learning_rate, self.clip))]
        return [*map(int, words), *[0] * (ORDER_WORDS - len(words))]

    @classmethod
    def from_words(cls, words: list[int]) -> Order:
        """The inverse of `to_words`."""
        return cls(OrderKind(words[0]), words[1], words[2], *map(word_to_float, words[3:6]))
