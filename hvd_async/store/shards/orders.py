"""Orders of the sequencer to the other shards: a few words in their blocks, carried out in order."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from hvd_async.store.wire.layout import ORDER_WORDS
from hvd_async.transport.block import float_to_word, word_to_float


class OrderKind(enum.IntEnum):
    """Kinds of orders: the methods of `Shard`, and the end."""

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
    """One order with its arguments; arguments that its kind does not need are 0."""

    kind: OrderKind
    slot: int = 0
    """Slot of the gradient for ADD and COMPENSATE; number of the provisional vector for PROVISIONAL_STEP."""
    version: int = 0
    number: float = 0.0
    """Divisor for ADD, NORM, STEP and PROVISIONAL_STEP; factor for COMPENSATE."""
    rate_factor: float = 0.0
    clip: float = 0.0

    def to_words(self) -> list[int]:
        """Return the order as control words."""
        words = [self.kind, self.slot, self.version, *map(float_to_word, (self.number, self.rate_factor, self.clip))]
        return [*map(int, words), *[0] * (ORDER_WORDS - len(words))]

    @classmethod
    def from_words(cls, words: list[int]) -> Order:
        """Return the order that `to_words` encoded as `words`."""
        return cls(OrderKind(words[0]), words[1], words[2], *map(word_to_float, words[3:6]))
