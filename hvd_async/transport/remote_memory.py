"""The block of another node by MPI: short reads and writes are one-sided, the rest are messages to the owner's thread."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np
import numpy.typing as npt
import torch
from mpi4py import MPI

from hvd_async.errors import PeerError
from hvd_async.transport.block import WORD_BYTES, BlockT
from hvd_async.transport.progress import FarRequest, Tag, chunks_of
from hvd_async.transport.pulse import FarWord, NativePulse, Pulse, Rhythm, ThreadPulse
from hvd_async.vectors import arithmetic

# Parts of a block of at least this size travel as messages.
_MESSAGE_BYTES = 1 << 14
# A slower link counts as broken.
_SLOWEST_BYTES_PER_SECOND = 1e6


@dataclass(frozen=True)
class FarWindow:
    """A window over a block, and the rank of its owner there."""

    window: MPI.Win
    owner: int

    def fetch_and_op(self, word: int, value: int, op: MPI.Op) -> int:
        """Apply `op` with `value` to a control word; return the previous value."""
        before = np.zeros(1, dtype=np.int64)
        self.window.Fetch_and_op(np.array([value], dtype=np.int64), before, self.owner, WORD_BYTES * word, op)
        self.window.Flush(self.owner)
        return int(before[0])

    def compare_and_swap(self, word: int, expected: int, value: int) -> int:
        """Replace a control word that is `expected` by `value`; return the previous value."""
        before = np.zeros(1, dtype=np.int64)
        wanted, known = np.array([value], dtype=np.int64), np.array([expected], dtype=np.int64)
        self.window.Compare_and_swap(wanted, known, before, self.owner, WORD_BYTES * word)
        self.window.Flush(self.owner)
        return int(before[0])


class RemoteMemory(Generic[BlockT]):
    """The block of another node, reached by one-sided communication and by messages to its owner."""

    name = "MPI"
    has_bells = False
    is_remote = True

    def __init__(
        self, layout: BlockT, far: FarWindow, messages: MPI.Comm, what: str, timeout_seconds: float, *, asks: bool
    ) -> None:
        """Use the window of `far`, which exposes the block on its owner in bytes and is locked for the life of this object;
        `messages` is the communicator of the owner's progress thread.

        `asks`: atomic operations are requests to this thread, not one-sided. An operation that takes longer than
        `timeout_seconds` ends this process, since MPI would wait for a dead owner forever. `what` names the owner in
        messages.
        """
        self.layout = layout
        self._far = far
        self._window = far.window
        self._owner = far.owner
        self._messages = messages
        self._asks = asks
        # Transfers to here, to the owner, and exchanges of words: one at a time of each, so that the messages of two threads
        # are not mixed up.
        self._reading, self._writing, self._exchanging = threading.Lock(), threading.Lock(), threading.Lock()
        self._flushing, self._listing = threading.Lock(), threading.Lock()
        self._what = what
        self._timeout_seconds = timeout_seconds
        self._moving: dict[int, tuple[int, float]] = {}  # operations under way: their bytes and deadlines
        self._unflushed: list[_Put] = []
        self._numbers = itertools.count()
        threading.Thread(target=self._watch, name="hvd-async-watchdog", daemon=True).start()

    def load(self, word: int) -> int:
        """Read a control word by Get: one load on the target for an aligned word, and faster than a message."""
        return self.load_words(word, 1)[0]

    def store(self, word: int, value: int) -> None:
        if self._asks:
            self._exchange(FarRequest.STORE, word, value)
            return
        # An atomic replaces the value only after the puts flushed before it; a plain Put of 8 bytes does not guarantee
        # that.
        with self._watched():
            self._far.fetch_and_op(word, value, MPI.REPLACE)

    def store_words(self, first: int, values: Sequence[int]) -> None:
        self.put(WORD_BYTES * first, torch.tensor(values, dtype=torch.int64))

    def load_words(self, first: int, count: int) -> list[int]:
        words = torch.empty(count, dtype=torch.int64)
        self.get(WORD_BYTES * first, words)
        values: list[int] = words.tolist()
        return values

    def fetch_add(self, word: int, amount: int) -> int:
        if self._asks:
            return self._exchange(FarRequest.ADD, word, amount)
        with self._watched():
            return self._far.fetch_and_op(word, amount, MPI.SUM)

    def compare_swap(self, word: int, expected: int, value: int) -> int:
        if self._asks:
            return self._exchange(FarRequest.SWAP, word, expected, value)
        with self._watched():
            return self._far.compare_and_swap(word, expected, value)

    def beat(self, word: int, rhythm: Rhythm) -> Pulse:
        far = _far_word(self._messages, self._owner, word) if arithmetic.has_doorbells() else None
        if far is None:
            return ThreadPulse(functools.partial(self.store, word), rhythm)
        return NativePulse(far, rhythm, self, self._watched)

    def put(self, offset: int, source: torch.Tensor) -> None:
        data, messages = _bytes_of(source), []
        with self._watched(data.size):
            if data.size >= _MESSAGE_BYTES:
                messages = self._send(offset, data)
            elif data.size:
                self._window.Put(data, self._owner, target=(offset, data.size, MPI.BYTE))
        put = _Put(source, data.size, messages)
        with self._listing:
            self._unflushed.append(put)

    def _send(self, offset: int, data: npt.NDArray[np.uint8]) -> list[MPI.Request]:
        with self._writing:
            self._ask(FarRequest.TAKE, offset, data.size)
            messages = [self._messages.Isend(chunk, self._owner, Tag.DATA) for chunk in chunks_of(data)]
            return [*messages, self._messages.Irecv(np.zeros(0, dtype=np.uint8), self._owner, Tag.TAKEN)]

    def flush(self) -> None:
        # Whoever flushes waits for all puts, also for those for which another thread waits now.
        with self._flushing:
            with self._listing:
                puts, self._unflushed = self._unflushed, []
            with self._watched(sum(put.num_bytes for put in puts)):
                self._window.Flush(self._owner)
                for put in puts:
                    MPI.Request.Waitall(put.messages)

    def get(self, offset: int, target: torch.Tensor) -> None:
        data = _bytes_of(target)
        if data.size >= _MESSAGE_BYTES:
            self._ask_for(offset, data)
        elif data.size:
            with self._watched():
                self._window.Get(data, self._owner, target=(offset, data.size, MPI.BYTE))
                self._window.Flush(self._owner)

    def _ask_for(self, offset: int, data: npt.NDArray[np.uint8]) -> None:
        with self._reading, self._watched(data.size):
            self._ask(FarRequest.GIVE, offset, data.size)
            answers = [self._messages.Irecv(chunk, self._owner, Tag.ANSWER) for chunk in chunks_of(data)]
            MPI.Request.Waitall(answers)

    def _exchange(self, request: FarRequest, *numbers: int) -> int:
        value = np.zeros(1, dtype=np.int64)
        with self._exchanging, self._watched():
            self._ask(request, *numbers)
            self._messages.Recv(value, self._owner, Tag.VALUE)
        return int(value[0])

    def _ask(self, request: FarRequest, *numbers: int) -> None:
        words = np.zeros(4, dtype=np.int64)
        words[: 1 + len(numbers)] = request, *numbers
        self._messages.Send(words, self._owner, Tag.REQUEST)

    def mapped(self, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor | None:
        return None

    def ring(self, bell: int) -> None:
        """Do nothing: the owner's progress thread sees what changed, and rings."""

    def heard(self, bell: int) -> int:
        return 0

    def wait(self, bell: int, heard: int, seconds: float) -> None:
        time.sleep(seconds)  # one-sided communication wakes no rank

    @contextlib.contextmanager
    def _watched(self, num_bytes: int = 0) -> Iterator[None]:
        """Watch an operation inside the block that moves `num_bytes`. It may take the configured time, and in addition what a
        slow link needs for all that moves at the time. Raises `PeerError` if MPI says that the owner is dead."""
        number = next(self._numbers)
        moving = num_bytes + sum(each for each, _ in self._moving.copy().values())
        allowed = self._timeout_seconds + moving / _SLOWEST_BYTES_PER_SECOND
        self._moving[number] = num_bytes, time.monotonic() + allowed
        try:
            yield
        except MPI.Exception as error:
            if error.Get_error_class() != MPI.ERR_PROC_FAILED:
                raise
            raise PeerError(f"{self._what} is dead, as MPI says", is_state_lost=True) from None
        finally:
            del self._moving[number]

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._timeout_seconds / 4))  # a watchdog checks this from time to time
            deadline = min((each for _, each in self._moving.copy().values()), default=None)
            if deadline is not None and time.monotonic() > deadline:
                sys.stderr.write(
                    f"hvd-async: {self._what} did not answer for {self._timeout_seconds:.0f} s"
                    " (strategy.store_timeout_seconds); its rank is dead, stopped or starved of a core\n"
                )
                sys.stderr.flush()
                os._exit(PeerError.exit_status)  # the thread is inside MPI and cannot be reached


@dataclass(frozen=True)
class _Put:
    """A put that is under way: MPI still reads `source`. `messages`: by which it travels; none: as one-sided operations."""

    source: torch.Tensor
    num_bytes: int
    messages: list[MPI.Request]


def _far_word(messages: MPI.Comm, owner: int, word: int) -> FarWord | None:
    """Return how a thread of C asks the progress thread of rank `owner` to set a control word; None if MPI's functions are not
    found."""
    send = _address_of_send()
    if send is None:
        return None
    are_pointers = MPI._sizeof(messages) == ctypes.sizeof(ctypes.c_void_p)
    return FarWord(send, _handle(MPI.INT64_T), _handle(messages), owner, Tag.REQUEST, FarRequest.BEAT, word, are_pointers)


@functools.cache
def _address_of_send() -> int | None:
    """Return the address of `MPI_Send` in the library that mpi4py uses; None if it hides it."""
    try:
        return ctypes.cast(ctypes.CDLL(MPI.__file__).MPI_Send, ctypes.c_void_p).value or None
    except (OSError, AttributeError):
        return None


def _handle(thing: MPI.Datatype | MPI.Comm) -> int:
    return MPI._handleof(thing) % 2**64  # an int may be negative


def _bytes_of(vector: torch.Tensor) -> npt.NDArray[np.uint8]:
    return vector.view(torch.uint8).numpy()
