"""A shard's block of memory: control words, published parameters, slots. Who writes what, and where it lies.

Every control word is an aligned int64 with one writer (STOP and FAILED apart, which any rank may write; words changed by atomic
operations; and the bells, which anybody on the store's node may ring). The order of writes is the protocol; see
`store.client` and `store.server`. Shard 0 is the sequencer: the words of the run, of workers and slots that count are those of
its block; in the blocks of other shards only the orders are used.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from hvd_async.transport.block import WORD_BYTES

if TYPE_CHECKING:  # which loads torch, and a request to stop, whose words are here, is to be heard before that
    from hvd_async.transport.window import OwnerWindow, Window

_PAGE_BYTES = 4096
# ShardOps that are worked through together must not all begin at the same place of a page: they would compete for the same lines
# of the nearest cache. So each begins nine lines further than the one before.
_STAGGER_BYTES = 576
# Each writer's words fill whole cache lines, so that neighbours do not disturb each other.
_LINE_WORDS = 8
_GLOBAL_WORDS = 32
_WORDS_PER_WORKER = 32
_WORDS_PER_ARRIVAL = 10
_WORDS_PER_SHARD = 8
ORDER_WORDS = 8
NUM_ORDERS = 64
NUM_PROVISIONAL = 2


class Word(enum.IntEnum):
    """Control words of the whole run; the comment names the writer."""

    VERSION = 0  # store: parameters of this version are published
    NEXT_VERSION = 1  # store: the version it is about to make; differs from VERSION during an update
    STOP = 2  # anyone, once: see `wire.stop`
    FAILED = 3  # anyone: which rank failed, see `wire.stop`; read together with STOP, and never overwritten by it
    STORE_HEARTBEAT = 4  # store: counts up while it lives
    EVALUATIONS_DUE = 5  # store: evaluations whose snapshot is on disk
    READY = 6  # store, once: the first version is out
    SERVED = 7  # store, once: the run has ended, and all that is to outlive it is saved
    CLAIMS = 8  # workers, by fetch-and-add: how many batches were claimed
    EVALUATIONS = 9  # workers, by fetch-and-add: evaluations claimed
    PROVISIONAL = 10  # store: how often it made provisional parameters; the last are readable
    NEXT_PROVISIONAL = 11  # store: those that it is about to make; differs from PROVISIONAL meanwhile
    PROVISIONAL_VERSION = 12  # store: the version below them, for each of the `NUM_PROVISIONAL` vectors
    PROVISIONAL_ARRIVALS = 14  # store: how many arrivals are in them, likewise
    STORE_BELL = 16  # rung by whoever gave the store something to do; a 32-bit count
    FIRST_EVALUATION = 18  # store, once: the version of the first evaluation of this process
    EVALUATE_EVERY = 19  # store, once: versions between evaluations
    ORDERS = 24  # sequencer, in the block of another shard: orders written; last of an order


class WorkerWord(enum.IntEnum):
    """Control words of one worker; the comment names the writer."""

    STATE = 0  # worker: see `WorkerState`
    HEARTBEAT = 1  # worker: counts up while it lives
    READING = 4  # worker: the version that it reads, and 1, where the store is to leave that buffer alone; else 0
    PROCESS = 5  # worker, once: its process id
    EVALUATED = 2  # worker: evaluations reported; last of a report
    EVALUATED_VERSION = 3
    EVALUATION_TAKEN = 8  # store: evaluations read
    STATISTICS = 16  # worker: doubles' bits, `MAX_STATISTICS` of them


MAX_STATISTICS = _WORDS_PER_WORKER - WorkerWord.STATISTICS


class SlotWord(enum.IntEnum):
    """Control words of one slot; the comment names the writer. Its owner is a worker, or a node's workers together."""

    PUSHED = 0  # owner: gradients written into the slot; last of a push
    BASE_VERSION = 1  # owner: announced before a pull, where the rules ask what is under way; else IDLE
    NEXT_BASE_VERSION = 3  # owner: the version that was pulled while a gradient on BASE_VERSION is computed; else IDLE
    WANTED = 2  # owner: the count of the push that waits for the slot to be free
    DRAINED = 8  # store: gradients that were taken in; if one completed an update, that is published
    FREED = 9  # store: gradients that were read, so that the slot may be written again
    RELEASED = 10  # store: gradients whose fate is known (in an update, or refused); lock-step waits for it
    BELL = 11  # rung by the store after it changed one of its words
    PUSHED_BASE_VERSION = 16  # owner: the oldest of the arrivals'; the rest too describes the gradient in the slot
    LARGEST = 17  # a double's bits: the largest magnitude of all that was pushed
    NUM_ARRIVALS = 18
    SENT_BYTES = 19
    ARRIVALS = 20  # `ArrivalWord`s of each arrival in the slot, one after the other


class ArrivalWord(enum.IntEnum):
    """What describes one arrival in a slot."""

    WORKER = 0
    BATCH = 1
    TOKENS = 2
    LOSS = 3  # a double's bits
    SECONDS = 4  # a double's bits
    BASE_VERSION = 5
    PROVISIONAL = 6
    PUSH_SECONDS = 7  # a double's bits; of the exchange before, as the next two
    WAIT_SECONDS = 8
    PULL_SECONDS = 9


class ShardWord(enum.IntEnum):
    """What another shard tells the sequencer, in the sequencer's block."""

    DONE = 0  # shard: orders carried out
    HEARTBEAT = 1  # shard: counts up while it lives


class WorkerState(enum.IntEnum):
    """Where a worker is in its life."""

    ABSENT = 0
    ACTIVE = 1
    LEFT = 2
    AWAY = 3  # among the workers of a node: it evaluates, and is not waited for


class SlotDtype(str, enum.Enum):
    """How numbers are pushed."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @property
    def num_bytes(self) -> int:
        """Of one number."""
        return 4 if self is SlotDtype.FLOAT32 else 2


@dataclass(frozen=True)
class SlotFormat:
    """What a slot holds: `capacity` numbers of `dtype`, the whole range or (sparse) so many at most of it, with indices."""

    dtype: SlotDtype
    capacity: int
    is_sparse: bool = False

    @property
    def indices_offset(self) -> int:
        """Bytes from the slot's beginning to the int32 indices; before them the number of elements, an int64."""
        return _LINE_WORDS * WORD_BYTES

    @property
    def values_offset(self) -> int:
        """Bytes from the slot's beginning to the values."""
        return self.indices_offset + -(-4 * self.capacity // 64) * 64 if self.is_sparse else 0

    @property
    def num_bytes(self) -> int:
        """Room for the slot."""
        return self.values_offset + self.capacity * self.dtype.num_bytes


@dataclass(frozen=True)
class Layout:
    """Offsets in bytes of everything in the block of one shard.

    `num_elements` is the length of the shard's range, gaps included; `num_buffers` the copies of the published parameters;
    `arrivals_per_slot` how many arrivals one push may bring; `num_state_vectors` the vectors of the optimizer that lie in the
    block, for the sequencer to read; `num_provisional` the vectors of provisional parameters: none, or NUM_PROVISIONAL;
    `num_partials` the sums of squares (doubles) that other shards write to the sequencer.
    """

    num_elements: int
    num_workers: int
    num_buffers: int = 3
    num_slots: int | None = None
    arrivals_per_slot: int = 1
    slot_format: SlotFormat | None = None
    num_shards: int = 1
    num_state_vectors: int = 0
    num_provisional: int = 0
    num_partials: int = 0

    @property
    def owners_bell(self) -> int:
        """The bell of the store, or of another shard."""
        return Word.STORE_BELL

    @property
    def owners_heartbeat(self) -> int:
        """The word that counts up while the store lives."""
        return Word.STORE_HEARTBEAT

    @property
    def slots(self) -> int:
        """Number of slots: one for each worker unless said otherwise."""
        return self.num_workers if self.num_slots is None else self.num_slots

    @property
    def format(self) -> SlotFormat:
        """What a slot holds: all elements in float32 unless said otherwise."""
        return self.slot_format or SlotFormat(SlotDtype.FLOAT32, self.num_elements)

    @property
    def words_per_slot(self) -> int:
        """Control words of one slot."""
        return -(-(SlotWord.ARRIVALS + self.arrivals_per_slot * _WORDS_PER_ARRIVAL) // _LINE_WORDS) * _LINE_WORDS

    @property
    def num_words(self) -> int:
        """Control words altogether."""
        return self._first_order_word + (NUM_ORDERS * ORDER_WORDS if self.num_shards > 1 else 0)

    @property
    def vector_bytes(self) -> int:
        """Room for one float32 vector."""
        return _apart(4 * self.num_elements)

    @property
    def slot_bytes(self) -> int:
        """Room for one slot."""
        return _apart(self.format.num_bytes)

    @property
    def total_bytes(self) -> int:
        """Size of the block."""
        return self.state_offset(self.num_state_vectors)

    def worker_word(self, worker: int, word: int) -> int:
        """Index among the control words of `word` (a `WorkerWord`, or one of the statistics) of `worker`."""
        return _GLOBAL_WORDS + worker * _WORDS_PER_WORKER + word

    def slot_word(self, slot: int, word: int) -> int:
        """Index among the control words of `word` (a `SlotWord`) of `slot`."""
        return _GLOBAL_WORDS + self.num_workers * _WORDS_PER_WORKER + slot * self.words_per_slot + word

    def arrival_word(self, slot: int, number: int, word: int) -> int:
        """Index among the control words of `word` (an `ArrivalWord`) of arrival `number` in `slot`."""
        return self.slot_word(slot, SlotWord.ARRIVALS) + number * _WORDS_PER_ARRIVAL + word

    def shard_word(self, shard: int, word: int) -> int:
        """Index among the sequencer's control words of `word` (a `ShardWord`) of `shard`."""
        return self.slot_word(self.slots, 0) + shard * _WORDS_PER_SHARD + word

    def order_word(self, number: int) -> int:
        """Index among the control words of another shard of the first word of order `number`."""
        return self._first_order_word + number % NUM_ORDERS * ORDER_WORDS

    def published_offset(self, version: int) -> int:
        """Byte offset of the buffer in which `version` is published."""
        return (
            self.partials_offset
            + _whole_pages(WORD_BYTES * self.num_partials)
            + version % self.num_buffers * self.vector_bytes
        )

    def provisional_offset(self, number: int) -> int:
        """Byte offset of the vector of the provisional parameters that were made as number `number`."""
        return self.published_offset(0) + (self.num_buffers + number % NUM_PROVISIONAL) * self.vector_bytes

    def slot_offset(self, slot: int) -> int:
        """Byte offset of `slot`."""
        num_vectors = self.num_buffers + self.num_provisional
        return self.published_offset(0) + num_vectors * self.vector_bytes + slot * self.slot_bytes

    def state_offset(self, number: int) -> int:
        """Byte offset of the optimizer's vector `number`."""
        return self.slot_offset(self.slots) + number * self.vector_bytes

    @property
    def partials_offset(self) -> int:
        """Byte offset of the sums of squares."""
        return _whole_pages(WORD_BYTES * self.num_words)

    @property
    def _first_order_word(self) -> int:
        return self.shard_word(self.num_shards if self.num_shards > 1 else 0, 0)


StoreWindow: TypeAlias = "Window[Layout]"
"""A shard's block as any rank reaches it."""
StoreMemory: TypeAlias = "OwnerWindow[Layout]"
"""A shard's block as its owner has it."""


def _apart(num_bytes: int) -> int:
    return _whole_pages(num_bytes) + _STAGGER_BYTES


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE_BYTES) * _PAGE_BYTES
