"""The thread by which the owner of a block serves ranks on other nodes."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
from mpi4py import MPI

from hvd_async.errors import PeerError
from hvd_async.transport.block import WORD_BYTES, Block
from hvd_async.transport.bootstrap import OUTLIVES
from hvd_async.vectors import arithmetic

REQUEST_TAG, ANSWER_TAG = 1, 2
# Measured over TCP: neither whole transfers nor smaller chunks are faster. Counts stay far below 2^31.
CHUNK_BYTES = 1 << 20
# The thread yields while there is traffic and for this long after it, then sleeps in small steps.
_EAGER_SECONDS = 0.05
_IDLE_SLEEP_SECONDS = 0.001


class ProgressThread:
    """A thread that lets MPI complete the one-sided operations of other nodes on this rank, whatever its other threads
    do. It also sends the data that other nodes request, since over a network a Get takes more than twice as long as a
    message of the same size (measured)."""

    def __init__(self, comm: MPI.Comm, memory: memoryview, block: Block) -> None:
        """Prepare the thread. `comm`: a communicator of the real ranks, for requests and answers only; `memory`: the
        memory they read, whose control words show traffic."""
        self._comm = comm
        self._bell, self._heartbeat = block.owners_bell, block.owners_heartbeat
        self._block = np.frombuffer(memory, dtype=np.uint8)
        self._words = self._block[: WORD_BYTES * block.num_words].view(np.int64)
        self._answers: list[MPI.Request] = []
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
                is_asked = self._answer()
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
            if is_asked or self._answers:
                eager_until = now + _EAGER_SECONDS
            if traffic != seen:
                seen, eager_until = traffic, now + _EAGER_SECONDS
                if arithmetic.has_doorbells():
                    arithmetic.ring(bell)  # ranks on other nodes cannot
            # sleep(0) yields the interpreter and the core without losing the turn for long
            time.sleep(0 if now < eager_until else _IDLE_SLEEP_SECONDS)

    def _is_outlived(self, error: Exception) -> bool:
        """Whether `error` says that a rank has died without which the others go on; MPI then goes on with these."""
        if os.environ.get(OUTLIVES) != "1" or not isinstance(error, MPI.Exception):
            return False
        if error.Get_error_class() not in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING):
            return False
        self._comm.Ack_failed()  # or the next look for requests of any rank would raise again
        dead = self._comm.Get_failed()
        self.dead_ranks = frozenset(dead.Translate_ranks(None, self._comm.Get_group()))
        return True

    def _answer(self) -> bool:
        """Start to send what another rank requests, if any; return whether one did. Looking for requests is what makes
        MPI progress."""
        status = MPI.Status()
        answers, self._answers = self._answers, []
        for position, answer in enumerate(answers):
            try:
                if not answer.Test():
                    self._answers.append(answer)
            except MPI.Exception:  # the rank that asked has died
                self._answers += answers[position + 1 :]
                raise
        if not self._comm.Iprobe(MPI.ANY_SOURCE, REQUEST_TAG, status):
            return False
        request = np.zeros(2, dtype=np.int64)
        self._comm.Recv(request, status.Get_source(), REQUEST_TAG)
        offset, num_bytes = request.tolist()
        for start in range(offset, offset + num_bytes, CHUNK_BYTES):
            chunk = self._block[start : min(start + CHUNK_BYTES, offset + num_bytes)]
            self._answers.append(self._comm.Isend(chunk, status.Get_source(), ANSWER_TAG))
        return True
