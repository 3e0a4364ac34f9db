"""Layout of a shard's block of memory: the place and the writer of control words, published parameters and slots.

Every control word is an aligned int64 with one writer. Exceptions: any rank may write STOP and FAILED, several ranks change
some words by atomic operations, and any rank on the store's node may ring the bells. The order of writes is the protocol;
see `store.serve.client` and `store.serve.server`. Shard 0 is the sequencer: the words of the run, of workers and of slots
are used in its block alone; in the blocks of other shards only the orders are used.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from hvd_async.system.limits import MOST_MICRO_BATCHES
from hvd_async.transport.block import WORD_BYTES

if TYPE_CHECKING:  # which loads torch, and a request to stop, whose words are here, is to be heard before that
    from hvd_async.config import PushConfig
    from hvd_async.transport.window import OwnerWindow, Window

_PAGE_BYTES = 4096
# Vectors that are processed together must not all begin at the same place of a page: they would compete for the same lines
# of the nearest cache. So each vector begins nine cache lines further into its page than the one before.
_STAGGER_BYTES = 576
# The words of each writer fill whole cache lines, which avoids false sharing.
_LINE_WORDS = 8
_GLOBAL_WORDS = 48
_WORDS_PER_WORKER = 96
# In place of a version: no gradient is under way.
IDLE = 2**62
_WORDS_PER_SHARD = 8
ORDER_WORDS = 8
INDEX_BYTES = 4
NUM_ORDERS = 64
NUM_RETURNS = 64
NUM_PROVISIONAL = 2
# Words before the records of the journal, and of each record: see `serve.journal`.
JOURNAL_HEAD_WORDS = 8
RECORD_WORDS = 32


class Word(enum.IntEnum):
    """Control words of the whole run; the comment names the writer."""

    VERSION = 0  # store: parameters of this version are published
    NEXT_VERSION = 1  # store: the version that it is about to make; differs from VERSION during an update
    STOP = 2  # any rank, once: see `wire.stop`
    FAILED = 3  # any rank: which rank failed, see `wire.stop`; read together with STOP, and not overwritten by STOP
    STORE_HEARTBEAT = 4  # store: see `LifeWord`
    SERVED = 7  # store, once: the run has ended: see `Served`
    PROVISIONAL = 10  # store: number of the newest provisional parameters, which are readable
    NEXT_PROVISIONAL = 11  # store: number of the provisional parameters that it is about to make; else equal to PROVISIONAL
    PROVISIONAL_VERSION = 12  # store: base version of the provisional parameters, for each of the `NUM_PROVISIONAL` vectors
    PROVISIONAL_ARRIVALS = 14  # store: number of arrivals in the provisional parameters, for each vector
    FIRST_EVALUATION = 18  # store, once: the version of the first evaluation of this process
    EVALUATE_EVERY = 19  # store, once: versions between evaluations
    GIVEN_AGAIN = 26  # store: number of batches that workers returned, and that it has given out again
    TAKEN_AGAIN = 27  # workers, by compare-and-swap: number of these that are claimed
    NUM_LOST = 29  # store: number of workers of the launcher that are dismissed
    NOTHING_OPEN = 28  # store, once: no batch can be given out again any more
    READY = 20  # store, once: the first version is published
    EVALUATIONS_DUE = 21  # store: number of evaluations whose snapshot is on disk
    ORDERS = 24  # sequencer, in the block of another shard: number of orders written; set last
    CLAIMS = 32  # workers, by fetch-and-add: number of batches claimed
    EVALUATIONS = 33  # workers, by compare-and-swap: number of evaluations claimed
    STORE_BELL = 40  # rung by any rank that gave the store something to do; a 32-bit count


class LifeWord(enum.IntEnum):
    """Words by which others see that a rank lives, counted from its `HEARTBEAT`; the rank writes them."""

    HEARTBEAT = 0  # counts up while the process lives
    PROCESS = 1  # once: its process id
    SCOPE = 2  # once, before the id: where this id has a meaning, see `scope_of_ids`


class WorkerWord(enum.IntEnum):
    """Control words of one worker; the comment names the writer."""

    STATE = 0  # worker: see `WorkerState`
    HEARTBEAT = 1  # worker: see `LifeWord`
    READING = 6  # worker: 1 + the version that it reads and whose buffer the store must not overwrite; else 0
    EVALUATED = 4  # worker: number of evaluations reported; set last
    EVALUATED_VERSION = 5
    EVALUATION_TAKEN = 8  # store: number of evaluations read
    STATISTICS = 16  # worker: bits of `MAX_STATISTICS` doubles
    WELCOME = 10  # store: 1 while it counts this worker, if the worker joined a run under way
    IS_GUEST = 12  # whoever took a free place: 1 if over the network
    RANK_LOST = 11  # store, once: the launcher's rank that was this worker is dismissed, whoever has its place now
    DISMISSED = 9  # store, once: this worker is taken for dead, and nothing of it counts any more
    HELD = 64  # worker: 1 + each batch that it has claimed, until another takes the place; `CLAIMING` while it claims; or 0


MAX_STATISTICS = WorkerWord.HELD - WorkerWord.STATISTICS
MAX_HELD = _WORDS_PER_WORKER - WorkerWord.HELD
CLAIMING = 2**62


class SlotWord(enum.IntEnum):
    """Control words of one slot; the comment names the writer. Its owner is a worker, or a node's workers together."""

    PUSHED = 0  # owner: number of gradients written into the slot; set last
    BASE_VERSION = 1  # owner: announced before a pull, if the rules depend on gradients under way; else IDLE
    NEXT_BASE_VERSION = 3  # owner: the version pulled while a gradient on BASE_VERSION is computed; else IDLE
    WANTED = 2  # owner: number of the push that waits until the slot is free
    SETTLED = 4  # owner, a node's workers: number of lost workers up to which their part in the node is settled
    DRAINED = 8  # store: number of gradients taken in; if one completed an update, the update is published
    FREED = 9  # store: number of gradients read, so that the slot may be written again
    RELEASED = 10  # store: number of gradients whose outcome (in an update, or refused) is known; lock-step waits for it
    BELL = 11  # rung by the store after it changed one of its words
    PUSHED_BASE_VERSION = 16  # owner: oldest base version of the arrivals; this and all words below describe the gradient
    LARGEST = 17  # bits of a double: largest magnitude of the push
    NUM_ARRIVALS = 18
    SENT_BYTES = 19
    ARRIVALS = 20  # the `ArrivalWord`s of each arrival in turn


class ArrivalWord(enum.IntEnum):
    """Words that describe one arrival in a slot."""

    WORKER = 0
    BATCH = 1
    WEIGHT = 2  # bits of a double
    LOSS = 3  # bits of a double
    SECONDS = 4  # bits of a double
    BASE_VERSION = 5
    PROVISIONAL = 6
    PUSH_SECONDS = 7  # bits of a double, as the next two; times of the push and pull before this step
    WAIT_SECONDS = 8
    PULL_SECONDS = 9
    LATER_BASES = 10  # two words for each micro-batch after the first: its base version, or `IDLE`, and `PROVISIONAL`


ARRIVAL_WORDS = ArrivalWord.LATER_BASES + 2 * (MOST_MICRO_BATCHES - 1)
"""Words of one arrival: the `ArrivalWord`s."""


class ShardWord(enum.IntEnum):
    """Control words of another shard in the sequencer's block; the comment names the writer."""

    DONE = 0  # shard: number of orders carried out
    HEARTBEAT = 1  # shard: see `LifeWord`


class WorkerState(enum.IntEnum):
    """Stage of a worker's life. A negative state: the process of this negated id is joining, and becomes active next."""

    ABSENT = 0
    ACTIVE = 1
    LEFT = 2
    AWAY = 3  # in node aggregation: the worker evaluates, and the others do not wait for it
    VACANT = 6  # written by the store: nobody has this place, and a process may join by a compare-and-swap
    JOINING_AFAR = 7  # written by the store for a process of another host, which becomes active next
    FAILED = 5  # the worker has failed, and its process is about to end
    WAITING = 4  # there are no more batches, unless another worker returns some


class Served(enum.IntEnum):
    """How the store ended."""

    SAVED = 1  # everything that is to outlive it is saved
    UNSAVED = 2  # not the last state, which may be saved from its memory


class SlotDtype(str, enum.Enum):
    """Data types of pushed numbers."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @property
    def num_bytes(self) -> int:
        """Bytes of one number."""
        return 4 if self is SlotDtype.FLOAT32 else 2


@dataclass(frozen=True)
class SlotFormat:
    """Format of a slot: `capacity` numbers of `dtype`, being the whole range or, if sparse, at most so many, with
    indices."""

    dtype: SlotDtype
    capacity: int
    is_sparse: bool = False

    @property
    def indices_offset(self) -> int:
        """Bytes from the slot's beginning to the int32 indices; the number of elements, an int64, comes before them."""
        return _LINE_WORDS * WORD_BYTES

    @property
    def values_offset(self) -> int:
        """Bytes from the slot's beginning to the values."""
        return self.indices_offset + -(-INDEX_BYTES * self.capacity // 64) * 64 if self.is_sparse else 0

    @property
    def num_bytes(self) -> int:
        """Size of the slot's contents in bytes."""
        return self.values_offset + self.capacity * self.dtype.num_bytes

    @property
    def sent_bytes(self) -> int:
        """Bytes of a push that fills the slot: numbers and indices."""
        return self.capacity * (self.dtype.num_bytes + (INDEX_BYTES if self.is_sparse else 0))


def num_kept(size: int, keep: float) -> int:
    """Return the highest number of elements sent of `size`, `keep` being the share to send."""
    return max(1, round(size * keep))


def slot_format(size: int, part: slice, push: PushConfig) -> SlotFormat:
    """Return the slot format of the shard that holds `part` of a vector of `size` elements."""
    dtype, length = SlotDtype(push.dtype), part.stop - part.start
    if push.keep == 1.0:
        return SlotFormat(dtype, length)
    return SlotFormat(dtype, min(length, num_kept(size, push.keep)), is_sparse=True)


@dataclass(frozen=True)
class Layout:
    """Byte offsets of everything in the block of one shard.

    `num_elements`: length of the shard's range, gaps included. `num_buffers`: copies of the published parameters.
    `arrivals_per_slot`: highest number of arrivals in one push. `num_state_vectors`: optimizer vectors in the block, where
    the sequencer reads them. `num_provisional`: vectors of provisional parameters, 0 or NUM_PROVISIONAL. `num_partials`:
    sums of squares (doubles) that other shards write to the sequencer. `num_records`: records for which the journal has room;
    `redo_bytes`: memory for the record of a step; both 0 if nobody goes on when the store's process dies.
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
    num_records: int = 0
    redo_bytes: int = 0

    @property
    def owners_bell(self) -> int:
        """Word of the bell of the block's owner, the store or another shard."""
        return Word.STORE_BELL

    @property
    def owners_heartbeat(self) -> int:
        """Word that counts up while the store lives."""
        return Word.STORE_HEARTBEAT

    @property
    def slots(self) -> int:
        """Number of slots; one for each worker by default."""
        return self.num_workers if self.num_slots is None else self.num_slots

    @property
    def format(self) -> SlotFormat:
        """Format of a slot; all elements in float32 by default."""
        return self.slot_format or SlotFormat(SlotDtype.FLOAT32, self.num_elements)

    @property
    def words_per_slot(self) -> int:
        """Number of control words of one slot."""
        return -(-(SlotWord.ARRIVALS + self.arrivals_per_slot * ARRIVAL_WORDS) // _LINE_WORDS) * _LINE_WORDS

    @property
    def num_words(self) -> int:
        """Number of control words in the block."""
        return self.journal_word(0) + (JOURNAL_HEAD_WORDS + self.num_records * RECORD_WORDS if self.num_records else 0)

    @property
    def vector_bytes(self) -> int:
        """Bytes reserved for one float32 vector."""
        return _apart(4 * self.num_elements)

    @property
    def slot_bytes(self) -> int:
        """Bytes reserved for one slot."""
        return _apart(self.format.num_bytes)

    @property
    def total_bytes(self) -> int:
        """Size of the block."""
        return self.redo_offset + _whole_pages(self.redo_bytes)

    def worker_word(self, worker: int, word: int) -> int:
        """Return the index of control word `word` (a `WorkerWord`, or one of the statistics) of `worker`."""
        return _GLOBAL_WORDS + NUM_RETURNS + worker * _WORDS_PER_WORKER + word

    def given_word(self, number: int) -> int:
        """Return the index of the word with the batch of return `number`, counted from 0."""
        return _GLOBAL_WORDS + number % NUM_RETURNS

    def slot_word(self, slot: int, word: int) -> int:
        """Return the index of control word `word` (a `SlotWord`) of `slot`."""
        return self.worker_word(self.num_workers, 0) + slot * self.words_per_slot + word

    def worker_column(self, word: int) -> tuple[int, int]:
        """Return the index of `word` of worker 0, and the number of words from one worker to the next."""
        return self.worker_word(0, word), _WORDS_PER_WORKER

    def slot_column(self, word: int) -> tuple[int, int]:
        """Return the index of `word` of slot 0, and the number of words from one slot to the next."""
        return self.slot_word(0, word), self.words_per_slot

    def arrival_word(self, slot: int, number: int, word: int) -> int:
        """Return the index of control word `word` (an `ArrivalWord`) of arrival `number` in `slot`."""
        return self.slot_word(slot, SlotWord.ARRIVALS) + number * ARRIVAL_WORDS + word

    def shard_word(self, shard: int, word: int) -> int:
        """Return the index, in the sequencer's block, of control word `word` (a `ShardWord`) of `shard`."""
        return self.slot_word(self.slots, 0) + shard * _WORDS_PER_SHARD + word

    def order_word(self, number: int) -> int:
        """Return the index, in the block of another shard, of the first control word of order `number`."""
        return self._first_order_word + number % NUM_ORDERS * ORDER_WORDS

    def journal_word(self, word: int) -> int:
        """Return the index of word `word` of the journal: the words of its head come first, then those of the records."""
        return self._first_order_word + (NUM_ORDERS * ORDER_WORDS if self.num_shards > 1 else 0) + word

    def published_offset(self, version: int) -> int:
        """Return the byte offset of the buffer in which `version` is published."""
        return (
            self.partials_offset
            + _whole_pages(WORD_BYTES * self.num_partials)
            + version % self.num_buffers * self.vector_bytes
        )

    def provisional_offset(self, number: int) -> int:
        """Return the byte offset of the vector of provisional parameters number `number`."""
        return self.published_offset(0) + (self.num_buffers + number % NUM_PROVISIONAL) * self.vector_bytes

    def slot_offset(self, slot: int) -> int:
        """Return the byte offset of `slot`."""
        num_vectors = self.num_buffers + self.num_provisional
        return self.published_offset(0) + num_vectors * self.vector_bytes + slot * self.slot_bytes

    def state_offset(self, number: int) -> int:
        """Return the byte offset of the optimizer's vector `number`."""
        return self.slot_offset(self.slots) + number * self.vector_bytes

    @property
    def redo_offset(self) -> int:
        """Byte offset of the record of a step."""
        return -(-self.state_offset(self.num_state_vectors) // 64) * 64

    @property
    def partials_offset(self) -> int:
        """Byte offset of the sums of squares."""
        return _whole_pages(WORD_BYTES * self.num_words)

    @property
    def _first_order_word(self) -> int:
        return self.shard_word(self.num_shards if self.num_shards > 1 else 0, 0)


StoreWindow: TypeAlias = "Window[Layout]"
"""A shard's block as any rank accesses it."""
StoreMemory: TypeAlias = "OwnerWindow[Layout]"
"""A shard's block as its owner accesses it."""


def _apart(num_bytes: int) -> int:
    return _whole_pages(num_bytes) + _STAGGER_BYTES


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE_BYTES) * _PAGE_BYTES
