"""Blocks over TCP, for processes of other hosts that are no ranks of the job: guests.

The owner's process serves them by a thread for each connection. A guest shows that it knows the run's secret before anything else
is read, and so does the owner to the guest; what follows is neither encrypted nor signed, like the traffic of MPI.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import functools
import hmac
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import torch

from hvd_async.errors import HvdAsyncError, PeerError, SetupError
from hvd_async.transport.block import WORD_BYTES, BlockT
from hvd_async.transport.inprocess import MappedMemory
from hvd_async.transport.pulse import Pulse, Rhythm, ThreadPulse

_NONCE_BYTES = 32
_HEADER = struct.Struct("<BBxxxxxxqqq")  # operation, block, three arguments
_WORD = struct.Struct("<q")
_SIOCGIFADDR = 0x8915
# Time for a stranger to show that it knows the secret, and the most strangers at a time.
_GREETING_SECONDS = 10.0
_MOST_STRANGERS = 16
_MOST_WORDS = 1 << 16


class _Operation(enum.IntEnum):
    TAKE = 1  # -> number of the place, or -1 and a text
    LOAD = 2  # first word, count -> words
    STORE = 3  # word, value -> a word
    STORE_WORDS = 4  # first word, count, then the words
    ADD = 5  # word, amount -> value before
    SWAP = 6  # word, expected, value -> value before
    PUT = 7  # offset, number of bytes, then the bytes
    GET = 8  # offset, number of bytes -> the bytes
    FLUSH = 9  # -> a word
    RING = 10  # bell


@dataclass(frozen=True)
class Address:
    """Where guests knock: addresses of the host, of which a guest tries each, a port, and the secret of the run."""

    hosts: tuple[str, ...]
    port: int
    secret: str


class Door(Generic[BlockT]):
    """The owner's side: lets guests take places, and works on the blocks for them; a context manager."""

    def __init__(
        self, memories: Sequence[MappedMemory[BlockT]], take_place: Callable[[], int], timeout_seconds: float
    ) -> None:
        """Listen on all addresses of this host. `memories` must outlive the door. `take_place` takes a free place; it may raise
        `SetupError`. A guest whose host does not answer for `timeout_seconds` has ended."""
        self._memories = memories
        self._take_place = take_place
        self._timeout_seconds = timeout_seconds
        self._secret = secrets.token_hex(32)
        self._socket = socket.create_server(("", 0), backlog=64)
        self._lock = threading.Lock()
        self._guests: dict[int, socket.socket] = {}
        self._connections: set[socket.socket] = set()
        self._strangers = threading.BoundedSemaphore(_MOST_STRANGERS)
        self._ended: set[int] = set()
        self._is_over = False

    @property
    def address(self) -> Address:
        """Where guests knock."""
        return Address(_own_addresses(), int(self._socket.getsockname()[1]), self._secret)

    def __enter__(self) -> Door[BlockT]:
        """Let guests in from now on."""
        threading.Thread(target=self._listen, name="hvd-async-door", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no more, and end all connections."""
        self._is_over = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def ended(self) -> frozenset[int]:
        """Return the places whose guests have ended or were shut out: nothing of them is written any more."""
        with self._lock:
            return frozenset(self._ended)

    def shut_out(self, place: int) -> None:
        """End the connection of the guest that has `place`, if there is one."""
        with self._lock:
            guest = self._guests.get(place)
        if guest is not None:
            with contextlib.suppress(OSError):
                guest.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        while not self._is_over:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                if self._is_over:
                    return
                time.sleep(0.1)  # no descriptors are left, for the moment
                continue
            if not self._strangers.acquire(blocking=False):
                connection.close()
                continue
            try:
                threading.Thread(target=self._receive, args=(connection,), name="hvd-async-guest", daemon=True).start()
            except RuntimeError:  # no more threads
                connection.close()
                self._strangers.release()

    def _receive(self, connection: socket.socket) -> None:
        place = -1
        with self._lock:
            self._connections.add(connection)
        try:
            try:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _greet(connection, self._secret, is_host=True)
            finally:
                self._strangers.release()
            connection.settimeout(None)
            _keep_alive(connection, self._timeout_seconds)
            while True:
                operation, block, first, second, third = _HEADER.unpack(_read(connection, _HEADER.size))
                if operation == _Operation.TAKE and place < 0:
                    place = self._seat(connection)
                else:
                    self._work(connection, _Operation(operation), self._memories[block], (first, second, third))
        except (OSError, ValueError, IndexError, EOFError, HvdAsyncError):
            pass  # it has gone, or does not speak our language; or the owner fails, and says so itself
        finally:
            with contextlib.suppress(OSError):
                connection.close()
            with self._lock:
                self._connections.discard(connection)
                for seated in [each for each, guest in self._guests.items() if guest is connection]:
                    del self._guests[seated]
                    self._ended.add(seated)

    def _seat(self, connection: socket.socket) -> int:
        try:
            with self._lock:  # who asks meanwhile whether the guest of this place has ended waits until it is this one
                place = self._take_place()
                self._guests[place] = connection
                self._ended.discard(place)
        except SetupError as error:
            text = str(error).encode()
            connection.sendall(_WORD.pack(-1) + _WORD.pack(len(text)) + text)
            return -1
        connection.sendall(_WORD.pack(place))
        return place

    def _work(
        self,
        connection: socket.socket,
        operation: _Operation,
        memory: MappedMemory[BlockT],
        arguments: tuple[int, int, int],
    ) -> None:
        first, second, third = arguments
        if operation in (_Operation.PUT, _Operation.GET):
            _check(0 <= first and 0 <= second and first + second <= memory.layout.total_bytes)
            part = _bytes_of(memory.vector(first, second, torch.uint8))
            if operation == _Operation.PUT:
                _read_into(connection, part)
            else:
                memory.flush()
                connection.sendall(part)
            return
        if operation == _Operation.FLUSH:
            memory.flush()
            connection.sendall(_WORD.pack(0))
            return
        _check(0 <= first < memory.layout.num_words)
        if operation in (_Operation.LOAD, _Operation.STORE_WORDS):
            _check(0 <= second <= _MOST_WORDS and first + second <= memory.layout.num_words)
        if operation == _Operation.LOAD:
            connection.sendall(np.array(memory.load_words(first, second), dtype="<i8").tobytes())
        elif operation == _Operation.STORE_WORDS:
            words = np.frombuffer(_read(connection, WORD_BYTES * second), dtype="<i8").tolist()
            memory.store_words(first, words)
        elif operation == _Operation.STORE:
            memory.store(first, second)
            connection.sendall(_WORD.pack(0))
        elif operation == _Operation.ADD:
            connection.sendall(_WORD.pack(memory.fetch_add(first, second)))
        elif operation == _Operation.SWAP:
            connection.sendall(_WORD.pack(memory.compare_swap(first, second, third)))
        else:
            _check(operation == _Operation.RING)
            memory.ring(first)


class Visit:
    """A guest's connection. Several threads may use it at once; each operation waits for the one before it."""

    def __init__(self, address: Address, timeout_seconds: float) -> None:
        """Connect to one of the hosts of `address`, and show the secret. Raises `SetupError` if none answers."""
        self.lock = threading.Lock()
        faults = []
        for host in address.hosts:
            try:
                self.socket = _connect(host, address)
                self.socket.settimeout(timeout_seconds)
                break
            except (OSError, EOFError, ValueError) as error:
                faults.append(f"{host}: {error or 'ended'}")
        else:
            raise SetupError(
                f"the store's host does not answer on port {address.port}: {'; '.join(faults)}; is there a firewall between the"
                " hosts?"
            )

    def close(self) -> None:
        """End the connection; a place that was taken has then ended."""
        self.socket.close()

    def take_place(self) -> int:
        """Take a free place. Raises `SetupError` if there is none."""
        with self.speaking():
            self.send(_Operation.TAKE, 0)
            place = self.read_word()
            if place >= 0:
                return place
            text = _read(self.socket, self.read_word()).decode(errors="replace")
        raise SetupError(text)

    def send(self, operation: int, block: int, first: int = 0, second: int = 0, third: int = 0, data: bytes = b"") -> None:
        """Send a request. With the lock held."""
        self.socket.sendall(_HEADER.pack(operation, block, first, second, third) + data)

    def read_word(self) -> int:
        """Read one word of an answer. With the lock held."""
        return int(_WORD.unpack(_read(self.socket, _WORD.size))[0])

    @contextlib.contextmanager
    def speaking(self) -> Iterator[None]:
        """Hold the lock, and raise `PeerError` if the connection fails inside the block."""
        with self.lock:
            try:
                yield
            except (OSError, EOFError) as error:
                raise PeerError(
                    f"the connection to the store has ended ({error or 'closed'}): the run has ended, takes this worker for dead,"
                    " or the network is broken",
                    is_state_lost=True,
                ) from None


class GuestMemory(Generic[BlockT]):
    """A block as a guest reaches it."""

    name = "TCP"
    has_bells = False
    is_remote = True

    def __init__(self, layout: BlockT, visit: Visit, block: int) -> None:
        """Use `visit` for the `block`-th memory of the door."""
        self.layout = layout
        self._visit = visit
        self._block = block

    def load(self, word: int) -> int:
        return self.load_words(word, 1)[0]

    def store(self, word: int, value: int) -> None:
        with self._visit.speaking():
            self._visit.send(_Operation.STORE, self._block, word, value)
            self._visit.read_word()

    def store_words(self, first: int, values: Sequence[int]) -> None:
        with self._visit.speaking():
            data = np.array(values, dtype="<i8").tobytes()
            self._visit.send(_Operation.STORE_WORDS, self._block, first, len(values), data=data)

    def load_words(self, first: int, count: int) -> list[int]:
        with self._visit.speaking():
            self._visit.send(_Operation.LOAD, self._block, first, count)
            words: list[int] = np.frombuffer(_read(self._visit.socket, WORD_BYTES * count), dtype="<i8").tolist()
        return words

    def fetch_add(self, word: int, amount: int) -> int:
        with self._visit.speaking():
            self._visit.send(_Operation.ADD, self._block, word, amount)
            return self._visit.read_word()

    def compare_swap(self, word: int, expected: int, value: int) -> int:
        with self._visit.speaking():
            self._visit.send(_Operation.SWAP, self._block, word, expected, value)
            return self._visit.read_word()

    def put(self, offset: int, source: torch.Tensor) -> None:
        data = _bytes_of(source)
        with self._visit.speaking():
            self._visit.send(_Operation.PUT, self._block, offset, len(data))
            self._visit.socket.sendall(data)

    def flush(self) -> None:
        with self._visit.speaking():
            self._visit.send(_Operation.FLUSH, self._block)
            self._visit.read_word()

    def get(self, offset: int, target: torch.Tensor) -> None:
        data = _bytes_of(target)
        with self._visit.speaking():
            self._visit.send(_Operation.GET, self._block, offset, len(data))
            _read_into(self._visit.socket, data)

    def mapped(self, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor | None:
        return None

    def ring(self, bell: int) -> None:
        with self._visit.speaking():
            self._visit.send(_Operation.RING, self._block, bell)

    def heard(self, bell: int) -> int:
        return 0

    def wait(self, bell: int, heard: int, seconds: float) -> None:
        time.sleep(seconds)  # the store wakes no guest

    def beat(self, word: int, rhythm: Rhythm) -> Pulse:
        return ThreadPulse(functools.partial(self.store, word), rhythm)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    whole: Any = tensor.view(torch.uint8).numpy()  # a buffer, although NumPy's stubs do not say so
    return memoryview(whole)


def _keep_alive(connection: socket.socket, seconds: float) -> None:
    """Have the kernel end the connection when the other host does not answer for about `seconds`; its process may be busy."""
    step = max(1, round(seconds / 4))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", step), ("TCP_KEEPINTVL", step), ("TCP_KEEPCNT", 3)):
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * seconds))


def _connect(host: str, address: Address) -> socket.socket:
    connection = socket.create_connection((host, address.port), timeout=_GREETING_SECONDS)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _greet(connection, address.secret, is_host=False)
    except BaseException:
        connection.close()
        raise
    return connection


def _greet(connection: socket.socket, secret: str, *, is_host: bool) -> None:
    """Show each side that the other knows `secret`, without sending it. Raises `ValueError` if it does not."""
    deadline = time.monotonic() + _GREETING_SECONDS
    mine = secrets.token_bytes(_NONCE_BYTES)
    connection.settimeout(_GREETING_SECONDS)
    connection.sendall(mine)
    theirs = _read(connection, _NONCE_BYTES, deadline)
    connection.sendall(_proof(secret, theirs, is_host))
    if not hmac.compare_digest(_read(connection, _NONCE_BYTES, deadline), _proof(secret, mine, not is_host)):
        raise ValueError("the other side does not know the run's secret")


def _proof(secret: str, nonce: bytes, is_host: bool) -> bytes:
    return hmac.digest(secret.encode(), (b"host " if is_host else b"guest ") + nonce, "sha256")


def _check(is_right: bool) -> None:
    if not is_right:
        raise ValueError("a request outside of the block")


def _read(connection: socket.socket, num_bytes: int, deadline: float | None = None) -> bytes:
    data = bytearray(num_bytes)
    _read_into(connection, memoryview(data), deadline)
    return bytes(data)


def _read_into(connection: socket.socket, data: memoryview, deadline: float | None = None) -> None:
    """Fill `data`. Raises `EOFError` if the connection ends, `OSError` if it fails, or at `deadline`, of the monotonic clock."""
    while len(data):
        if deadline is not None:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
        received = connection.recv_into(data)
        if received == 0:
            raise EOFError
        data = data[received:]


def _own_addresses() -> tuple[str, ...]:
    """Return this host's IPv4 addresses that other hosts may reach, and its name."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.append(socket.inet_ntoa(answer[20:24]))
    return (*(address for address in found if not address.startswith("127.")), socket.gethostname())
