"""Requests of a worker to the store's rank outside the protocol: plain messages for comparison, and the store's CPU time.

The store's rank answers between two turns of its server's loop, so that a worker can measure Send and Recv in turns with
pushes and pulls in one run. Nothing is sent while a push or a pull is timed.
"""

from __future__ import annotations

import enum
import statistics
import time

import torch

from hvd_async.benchmarks.measurement import timed
from hvd_async.store.wire.stop import StopNotice
from hvd_async.transport.messages import PointToPoint

_STORE_RANK = 0


class Request(enum.IntEnum):
    """Requests of a worker; the comment of each gives the meaning of its number."""

    TAKE = 0  # bytes that the worker will send
    GIVE = 1  # bytes to be sent to the worker
    ECHO = 2  # small messages to be sent back
    IDLE = 3  # milliseconds over which to account for CPU time


class EchoServer:
    """The store rank's side. The server calls `between_turns` as its `stop_requested`."""

    def __init__(self, messages: PointToPoint, most_bytes: int) -> None:
        """Allocate the buffer. `most_bytes`: bytes of the largest message."""
        self._messages = messages
        self._buffer = torch.zeros(most_bytes, dtype=torch.uint8)
        self._account: tuple[int, float, float, float] | None = None

    def between_turns(self) -> StopNotice | None:
        """Answer a request if there is one. Return None: the run is never asked to stop."""
        if self._account is not None:
            self._close_account(*self._account)
            return None  # meanwhile the server behaves as it does when idle
        worker = self._messages.waiting()
        if worker is not None:
            self._answer(worker)
        return None

    def _answer(self, worker: int) -> None:
        words = torch.zeros(2, dtype=torch.int64)
        self._messages.receive(worker, words)
        request, amount = Request(int(words[0])), int(words[1])
        self._messages.send(worker, words)  # ready: the worker's clock starts now
        if request is Request.TAKE:
            self._messages.receive(worker, self._buffer[:amount])
            self._messages.send(worker, words)
        elif request is Request.GIVE:
            self._messages.receive(worker, words)
            self._messages.send(worker, self._buffer[:amount])
        elif request is Request.ECHO:
            for _ in range(amount):
                self._messages.receive(worker, words)
                self._messages.send(worker, words)
        else:
            now = time.perf_counter()
            self._account = (worker, now, now + amount / 1e3, time.process_time())

    def _close_account(self, worker: int, begin: float, end: float, cpu_seconds: float) -> None:
        now = time.perf_counter()
        if now < end:
            return
        self._account = None
        share = (time.process_time() - cpu_seconds) / (now - begin)
        self._messages.send(worker, torch.tensor([share], dtype=torch.float64))


class EchoClient:
    """A worker's side."""

    def __init__(self, messages: PointToPoint) -> None:
        """Borrow `messages`."""
        self._messages = messages
        self._words = torch.zeros(2, dtype=torch.int64)

    def send_seconds(self, data: torch.Tensor) -> float:
        """Return the seconds of sending contiguous `data` to the store's rank, until that rank confirms its arrival."""
        self._ask(Request.TAKE, data.numel() * data.element_size())
        begin = time.perf_counter()
        self._messages.send(_STORE_RANK, data)
        self._messages.receive(_STORE_RANK, self._words)
        return time.perf_counter() - begin

    def receive_seconds(self, data: torch.Tensor) -> float:
        """Return the seconds from a request to the waiting store's rank until `data` is filled, with zeros."""
        self._ask(Request.GIVE, data.numel() * data.element_size())
        begin = time.perf_counter()
        self._messages.send(_STORE_RANK, self._words)
        self._messages.receive(_STORE_RANK, data)
        return time.perf_counter() - begin

    def echo_seconds(self, count: int) -> float:
        """Return the seconds of a small message to the waiting store's rank and back, the median of `count`."""
        self._ask(Request.ECHO, count)
        return statistics.median(timed(self._echo) for _ in range(count))

    def idle_share(self, seconds: float) -> float:
        """Return the CPU time of the store's rank, all threads, as a share of `seconds` in which this worker sleeps."""
        self._ask(Request.IDLE, round(seconds * 1e3))
        time.sleep(seconds)  # a worker that waits for the answer inside MPI would not be idle
        share = torch.zeros(1, dtype=torch.float64)
        self._messages.receive(_STORE_RANK, share)
        return float(share)

    def _ask(self, request: Request, amount: int) -> None:
        self._messages.send(_STORE_RANK, torch.tensor([request, amount], dtype=torch.int64))
        self._messages.receive(_STORE_RANK, self._words)

    def _echo(self) -> None:
        self._messages.send(_STORE_RANK, self._words)
        self._messages.receive(_STORE_RANK, self._words)
