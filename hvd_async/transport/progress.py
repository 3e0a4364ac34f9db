"""The thread by which the owner of a block serves ranks on other nodes."""

from __future__ import annotations

import enum
import os
import threading
import time
from collections import deque

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

from hvd_async.cluster.environment import keeps_other_ranks
from hvd_async.errors import PeerError
from hvd_async.transport.block import WORD_BYTES, Block
from hvd_async.vectors import arithmetic


class Tag(enum.IntEnum):
    """Kinds of messages between the thread and ranks on other nodes."""

    REQUEST = 1  # to the owner, [4] int64: what is asked, and its three numbers
    ANSWER = 2  # to the asker: the bytes of GIVE
    DATA = 3  # to the owner: the bytes of TAKE
    TAKEN = 4  # to the asker, empty: these bytes are in the block
    VALUE = 5  # to the asker, [1] int64: the answer to all other requests


class FarRequest(enum.IntEnum):
    """Requests of a rank on another node; the comment of each gives the meaning of its numbers."""

    GIVE = 0  # to be sent a part of the block: its first byte, number of bytes
    TAKE = 1  # to have a part of the block replaced by what it sends: likewise
    STORE = 2  # to set a control word: its index, value
    ADD = 3  # to add to a control word: its index, amount; answered with the value before
    SWAP = 4  # to set a control word if it has a value: its index, this value, the new one; answered with the value before
    BEAT = 5  # to set a control word, without an answer: its index, value


# Measured over TCP, with Open MPI and MPICH: neither longer nor shorter chunks are faster. Counts stay far below 2^31.
CHUNK_BYTES = 1 << 23
# The thread yields while there is traffic and for this long after it, then sleeps in small steps.
_EAGER_SECONDS = 0.05
_IDLE_SLEEP_SECONDS = 0.001
_NOTHING = np.zeros(0, dtype=np.uint8)


def chunks_of(part: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    """Return [num_bytes] as the pieces in which it travels, each a message."""
    return [part[start : start + CHUNK_BYTES] for start in range(0, part.size, CHUNK_BYTES)]


class ProgressThread:
    """A thread that lets MPI complete the one-sided operations of other nodes on this rank, whatever its other threads
    do. It also does for them by message what messages do faster (measured over TCP): long parts of the block, for which Get
    takes more than twice as long and Put nearly, and atomic operations, which take three times as long one-sided."""

    def __init__(self, comm: MPI.Comm, memory: memoryview, block: Block) -> None:
        """Prepare the thread. `comm`: a communicator of the real ranks, for these messages only; `memory`: the
        memory that they read and write, whose control words show traffic."""
        self._comm = comm
        self._bell, self._heartbeat = block.owners_bell, block.owners_heartbeat
        self._block = np.frombuffer(memory, dtype=np.uint8)
        self._words = self._block[: WORD_BYTES * block.num_words].view(np.int64)
        self._sends: list[MPI.Request] = []
        self._receives: dict[int, deque[deque[MPI.Request]]] = {}  # of each rank: its transfers, and their chunks, in order
        self._stop = threading.Event()
        self._failure: str | None = None
        self.dead_ranks: frozenset[int] = frozenset()
        """Ranks of which MPI says that they are dead, where the others go on."""
        self._thread = threading.Thread(target=self._run, name="hvd-async-progress", daemon=True)

    def __enter__(self) -> ProgressThread:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread and wait for it."""
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Raise `PeerError` if an error has ended the thread: MPI may have told it that a rank failed."""
        if self._failure is not None:
            raise PeerError(f"the thread that answers other nodes has failed, or another rank has: {self._failure}")

    def _run(self) -> None:
        bell = self._words.ctypes.data + WORD_BYTES * self._bell
        seen, eager_until = -1, 0.0
        while not self._stop.is_set():
            try:
                has_moved = self._serve()
            except Exception as error:  # any error: without this thread other nodes would wait forever
                if self._is_outlived(error):
                    continue
                self._failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
                return
            # Without the words that the owner itself changes while it waits, or the two threads would keep each other
            # awake.
            own = int(self._words[self._bell]) + int(self._words[self._heartbeat])
            traffic = int(self._words.sum()) - own
            now = time.monotonic()
            if has_moved:
                eager_until = now + _EAGER_SECONDS
            if traffic != seen:
                seen, eager_until = traffic, now + _EAGER_SECONDS
                if arithmetic.has_doorbells():
                    arithmetic.ring(bell)  # ranks on other nodes cannot
            # sleep(0) yields the interpreter and the core without losing the turn for long
            time.sleep(0 if now < eager_until else _IDLE_SLEEP_SECONDS)

    def _is_outlived(self, error: Exception) -> bool:
        """Whether `error` says that a rank has died without which the others go on; MPI then goes on with these."""
        if not keeps_other_ranks(os.environ) or not isinstance(error, MPI.Exception):
            return False
        if error.Get_error_class() not in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING):
            return False
        self._comm.Ack_failed()  # or the next look for requests of any rank would raise again
        dead = self._comm.Get_failed()
        self.dead_ranks = frozenset(dead.Translate_ranks(None, self._comm.Get_group()))
        return True

    def _serve(self) -> bool:
        """Go on with the transfers under way, and begin one if another rank asks for it; return whether anything but a beat
        moved. Looking for requests is what makes MPI progress."""
        has_moved = self._go_on_sending()
        for rank in list(self._receives):
            has_moved |= self._go_on_receiving(rank)
        status, words = MPI.Status(), np.zeros(4, dtype=np.int64)
        # Taken from the queue by this: a receive that names a rank fails once the rank has died, and leaves the message there.
        message = self._comm.Improbe(MPI.ANY_SOURCE, Tag.REQUEST, status)
        if message is None:
            return has_moved
        message.Recv(words)
        rank = status.Get_source()
        if rank in self.dead_ranks:
            return True  # others may have its place by now
        request, place, number, value = words.tolist()
        if request == FarRequest.GIVE:
            self._sends += [
                self._comm.Isend(chunk, rank, Tag.ANSWER) for chunk in chunks_of(self._block[place : place + number])
            ]
        elif request == FarRequest.TAKE:
            transfer = deque(
                self._comm.Irecv(chunk, rank, Tag.DATA) for chunk in chunks_of(self._block[place : place + number])
            )
            self._receives.setdefault(rank, deque()).append(transfer)
        else:
            before = self._change(FarRequest(request), place, number, value)
            if request == FarRequest.BEAT:
                return has_moved
            self._sends.append(self._comm.Isend(np.array([before], dtype=np.int64), rank, Tag.VALUE))
        return True

    def _change(self, request: FarRequest, word: int, number: int, value: int) -> int:
        """Change a control word as asked; return the value before."""
        address = self._words.ctypes.data + WORD_BYTES * word
        if request == FarRequest.ADD:
            return arithmetic.fetch_add(address, number)
        if request == FarRequest.SWAP:
            return arithmetic.compare_swap(address, number, value)
        before = int(self._words[word])
        _fence()
        self._words[word] = number
        _fence()
        return before

    def _go_on_sending(self) -> bool:
        """Return whether a message has been sent."""
        sends, self._sends = self._sends, []
        for position, send in enumerate(sends):
            try:
                if not send.Test():
                    self._sends.append(send)
            except MPI.Exception:  # the rank that asked has died
                self._sends += sends[position + 1 :]
                raise
        return len(self._sends) < len(sends)

    def _go_on_receiving(self, rank: int) -> bool:
        """Confirm the transfers of `rank` that are complete, in their order; return whether a message has come."""
        transfers, has_moved = self._receives.pop(rank), False  # not put back if Test says that the rank has died
        while transfers:
            while transfers[0] and transfers[0][0].Test():
                transfers[0].popleft()
                has_moved = True
            if transfers[0]:
                self._receives[rank] = transfers
                return has_moved
            transfers.popleft()
            _fence()  # what was received comes before the confirmation
            self._sends.append(self._comm.Isend(_NOTHING, rank, Tag.TAKEN))
        return has_moved


def _fence() -> None:
    if arithmetic.has_doorbells():  # otherwise the owner's `load` has a fence of MPI's
        arithmetic.fence()
