"""The store's block of memory: control words, published parameters, slots. Who writes what, and where it lies.

Every control word is an aligned int64 with one writer (the stop word apart: any rank may write it, and a
failure overwrites what was there). The
order of writes is the protocol; see `store.client` and `store.server`.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

WORD_BYTES = 8
_PAGE_BYTES = 4096
# A worker's words fill whole cache lines, so that neighbours do not disturb each other.
_WORDS_PER_WORKER = 32
_GLOBAL_WORDS = 16


class Word(enum.IntEnum):
    """Control words of the whole run; the comment names the writer."""

    VERSION = 0  # store: parameters of this version are published
    CLAIMS = 1  # workers, by fetch-and-add: how many batches were claimed
    STOP = 2  # anyone, once: see `StopNotice`
    STORE_HEARTBEAT = 3  # store: counts up while it lives
    NEXT_VERSION = 4  # store: the version it is about to make; differs from VERSION during an update
    EVALUATIONS = 5  # workers, by fetch-and-add: evaluations claimed
    EVALUATIONS_DUE = 6  # store: evaluations whose snapshot is on disk
    FIRST_EVALUATION = 7  # store, once: the version of the first evaluation of this process
    EVALUATE_EVERY = 8  # store, once: versions between evaluations
    SERVED = 9  # store, once: every worker has left and the run has ended


class WorkerWord(enum.IntEnum):
    """Control words of one worker; the comment names the writer."""

    STATE = 0  # worker: see `WorkerState`
    HEARTBEAT = 1  # worker: counts up while it lives
    BASE_VERSION = 2  # worker: announced before a pull, so that the store knows what is under way
    PUSHED = 3  # worker: gradients written into the slot; last of a push
    DRAINED = 4  # store: gradients taken out of the slot
    RELEASED = 5  # store: gradients whose fate is known (in an update, or refused); lock-step waits for it
    SLOT_BASE_VERSION = 6  # worker: the rest describes the gradient in the slot
    SLOT_TOKENS = 7
    SLOT_LOSS = 8  # a double's bits
    SLOT_BATCH = 9
    SLOT_SECONDS = 10  # a double's bits
    EVALUATED = 11  # worker: evaluations reported; last of a report
    EVALUATED_VERSION = 12
    EVALUATION_TAKEN = 13  # store: evaluations read
    STATISTICS = 14  # worker: doubles' bits, `MAX_STATISTICS` of them


MAX_STATISTICS = _WORDS_PER_WORKER - WorkerWord.STATISTICS


class WorkerState(enum.IntEnum):
    """Where a worker is in its life."""

    ABSENT = 0
    ACTIVE = 1
    LEFT = 2


class StopKind(enum.IntEnum):
    """Why workers are to stop."""

    FINISHED = 1
    SIGNAL = 2
    FAILURE = 3


@dataclass(frozen=True)
class StopNotice:
    """What the stop word says: why, who said it, and for a signal which."""

    kind: StopKind
    rank: int
    signal_number: int = 0

    def to_word(self) -> int:
        """The notice as a control word; never 0."""
        return self.kind << 48 | self.signal_number << 32 | self.rank

    @classmethod
    def from_word(cls, word: int) -> StopNotice | None:
        """The notice that `word` holds, or None for 0: go on."""
        if word == 0:
            return None
        return cls(StopKind(word >> 48), rank=word & 0xFFFFFFFF, signal_number=word >> 32 & 0xFFFF)


@dataclass(frozen=True)
class Layout:
    """Offsets in bytes of everything in the block.

    `num_elements` is the length of the parameter vector, gaps included; `num_buffers` the copies of the published
    parameters.
    """

    num_elements: int
    num_workers: int
    num_buffers: int = 3

    @property
    def num_words(self) -> int:
        """Control words altogether."""
        return _GLOBAL_WORDS + self.num_workers * _WORDS_PER_WORKER

    @property
    def vector_bytes(self) -> int:
        """Room for one vector, up to a whole page."""
        return _whole_pages(4 * self.num_elements)

    @property
    def total_bytes(self) -> int:
        """Size of the block."""
        return _whole_pages(WORD_BYTES * self.num_words) + (self.num_buffers + self.num_workers) * self.vector_bytes

    def worker_word(self, worker: int, word: int) -> int:
        """Index among the control words of `word` (a `WorkerWord`, or one of the statistics) of `worker`."""
        return _GLOBAL_WORDS + worker * _WORDS_PER_WORKER + word

    def published_offset(self, version: int) -> int:
        """Byte offset of the buffer in which `version` is published."""
        return _whole_pages(WORD_BYTES * self.num_words) + (version % self.num_buffers) * self.vector_bytes

    def slot_offset(self, worker: int) -> int:
        """Byte offset of the slot that `worker` writes."""
        return _whole_pages(WORD_BYTES * self.num_words) + (self.num_buffers + worker) * self.vector_bytes


def float_to_word(value: float) -> int:
    """The bits of a double as an int64 control word."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def word_to_float(word: int) -> float:
    """The double whose bits `word` holds."""
    return float(struct.unpack("<d", struct.pack("<q", word))[0])


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE_BYTES) * _PAGE_BYTES
