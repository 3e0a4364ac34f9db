"""Connections between rank 0 and each other rank, by which a rank that waits learns that another one has ended.

An agent of torchrun ends the ranks of its own host when one of them fails, but not those of other hosts. The connections of a
process are closed when the process ends, and stay open while it is busy. Of a host that is lost, the system tells after minutes.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Mapping

from hvd_async.errors import SetupError

_TOKEN_BYTES = 32
_HANDSHAKE_SECONDS = 10.0
# Of a host that is lost: the first question after a minute without an answer, and the end after 8 more, 15 s apart.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 8))


class LifeLines:
    """This rank's connections: those of rank 0 to all others, those of another rank to rank 0."""

    def __init__(self, connections: Mapping[int, socket.socket]) -> None:
        """`connections`: rank at the other end -> connection, on which nothing is sent any more."""
        self._connections = connections

    def ended(self, rank: int) -> int | None:
        """Return the rank that has ended, of `rank` on rank 0, and of rank 0 on the others; None if it lives. Does not block.

        Rank 0 waits for each rank, and ends when it learns that one has ended: so the others learn it, too.
        """
        other = rank if rank in self._connections else 0
        try:
            return other if self._connections[other].recv(1, socket.MSG_DONTWAIT) == b"" else None
        except BlockingIOError:
            return None
        except OSError:
            return other


def connect_ranks(rank: int, size: int, share: Callable[[str], str], seconds: float) -> LifeLines:
    """Connect rank 0 with all others. Collective; blocks for at most `seconds` on top of `share`.

    `share`: gives the text of rank 0 to all ranks. Raises `SetupError` if the ranks do not reach rank 0.
    """
    if rank == 0:
        token = secrets.token_hex(_TOKEN_BYTES // 2)
        with socket.create_server(("", 0), backlog=size) as server:
            share(f"{socket.gethostname()} {server.getsockname()[1]} {token}")
            return LifeLines(_accept(server, size, token, seconds))
    host, port, token = share("").split()
    try:
        connection = socket.create_connection((host, int(port)), seconds)
        connection.sendall(f"{token}{rank:08}".encode())
        connection.settimeout(seconds)
        if connection.recv(1) != b"+":
            raise ConnectionError("rank 0 has closed the connection")
    except OSError as error:
        raise SetupError(f"torchrun: rank {rank} does not reach rank 0 at {host}, port {port}: {error}") from None
    return LifeLines({0: _kept(connection)})


def _accept(server: socket.socket, size: int, token: str, seconds: float) -> dict[int, socket.socket]:
    """Return a connection for each other rank. Those of strangers, which do not know the token, are closed."""
    end = time.monotonic() + seconds
    found: dict[int, socket.socket] = {}
    while len(found) < size - 1:
        server.settimeout(max(0.01, end - time.monotonic()))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            absent = sorted({*range(1, size)} - {*found})
            raise SetupError(f"torchrun: rank {absent[0]} has not reached rank 0 in {seconds:g} s") from None
        rank = _named_rank(connection, token)
        if rank is None:
            connection.close()
            continue
        connection.sendall(b"+")
        found[rank] = _kept(connection)
    return found


def _named_rank(connection: socket.socket, token: str) -> int | None:
    """Return the rank that has connected; None for a stranger."""
    connection.settimeout(_HANDSHAKE_SECONDS)
    text = b""
    try:
        while len(text) < len(token) + 8 and (part := connection.recv(len(token) + 8 - len(text))):
            text += part
    except OSError:
        return None
    is_ours = secrets.compare_digest(text[: len(token)], token.encode()) and text[len(token) :].isdigit()
    return int(text[len(token) :]) if is_ours else None


def _kept(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection
