"""The ranks that torchrun has started, which meet at its store: a key for each value, and no MPI."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Iterator, Mapping
from typing import NoReturn

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from hvd_async.cluster.environment import TORCHRUN, read_environment
from hvd_async.errors import PeerError, SetupError
from hvd_async.strategies.life_lines import LifeLines, connect_ranks
from hvd_async.transport.group import messages_of

# torch's store refuses values above 8 MiB.
_PART_BYTES = 4 << 20
_MEETING_SECONDS = 300
"""How long ranks may take to start. torchrun starts them at once, other hosts' a little later."""
_LOOK_SECONDS = 10


def is_under_torchrun(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun has started this process as one of several."""
    launched = read_environment(environ)
    return launched is not None and launched.launcher is TORCHRUN and launched.size > 1


class TorchrunGroup:
    """The ranks of torchrun as a `Group`."""

    def __init__(self) -> None:
        """Meet the other ranks at MASTER_ADDR and MASTER_PORT. Collective.

        Raises `SetupError` if that place is not given, or the ranks do not meet there.
        """
        absent = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if absent:
            raise SetupError(
                f"environment variable {absent[0]}: not set, expected the place where the ranks meet, from torchrun"
            )
        try:
            timeout = datetime.timedelta(seconds=_MEETING_SECONDS)
            store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise SetupError(f"torchrun: the ranks do not meet at MASTER_ADDR and MASTER_PORT: {reason}") from None
        self._store = PrefixStore("hvd-async", store)
        self.rank, self.size = int(rank), int(size)
        self._number = 0
        self._lines: LifeLines | None = None
        self._is_meeting = os.environ.get("LOCAL_WORLD_SIZE") != str(self.size)
        if self._is_meeting:  # ranks of several hosts: the agent of a host ends the ranks of this host alone
            self._lines = connect_ranks(self.rank, self.size, lambda text: self.allgather(text)[0], _MEETING_SECONDS)
            self._is_meeting = False

    def allgather(self, text: str) -> list[str]:
        self._number += 1
        self._put(f"{self._number}/{self.rank}", text.encode())
        found = [self._get(f"{self._number}/{rank}", rank).decode() for rank in range(self.size)]
        # All ranks have come here, and so have read what they were given the time before.
        self._delete(f"{self._number - 1}/{self.rank}")
        return found

    def broadcast(self, tensor: torch.Tensor) -> None:
        for part in messages_of(tensor) if tensor.numel() else ():
            key = f"broadcast/{self._number}"  # another one for each call, since rank 0 deletes it later than others go on
            if self.rank == 0:
                self._put(key, part.numpy().tobytes())
            else:
                part.copy_(torch.frombuffer(bytearray(self._get(key, 0)), dtype=torch.uint8))
            self.allgather("")  # all have read it
            if self.rank == 0:
                self._delete(key)

    def take_lost(self) -> list[int]:
        return []

    def report_failure(self, status: int, text: str) -> bool:
        """Return False: a rank that waits at the store cannot be told."""
        return False

    def reported_failure(self) -> tuple[int, str] | None:
        return None

    def abort(self, status: int) -> NoReturn:
        """End this rank, after which torchrun ends the others."""
        os._exit(status)

    def _put(self, key: str, value: bytes) -> None:
        parts = range(0, max(1, len(value)), _PART_BYTES)
        with self._store_errors(0):
            for number, start in enumerate(parts):
                self._store.set(f"{key}/{number}", value[start : start + _PART_BYTES])  # type: ignore[arg-type]  # bytes, too
            self._store.set(key, str(len(parts)))

    def _get(self, key: str, rank: int) -> bytes:
        return b"".join(self._wait(f"{key}/{number}", rank) for number in range(int(self._wait(key, rank))))

    def _wait(self, key: str, rank: int) -> bytes:
        """Return the value of `key`, when `rank` has put it there. Raises `PeerError` if the store has gone, or a rank on another
        host has ended."""
        ended, began = None, time.monotonic()
        while True:
            try:
                with self._store_errors(rank):
                    self._store.wait([key], datetime.timedelta(seconds=_LOOK_SECONDS))
                    return bytes(self._store.get(key))
            except dist.DistStoreError:  # not yet; torchrun ends this rank if another one of this host fails
                if ended is not None:
                    raise self._left_alone(ended) from None
                if self._is_meeting and time.monotonic() > began + _MEETING_SECONDS:
                    raise SetupError(f"torchrun: rank {rank} has not come in {_MEETING_SECONDS} s; see its output") from None
                # One more look: the rank may have put the value there just before it ended.
                ended = None if self._lines is None else self._lines.ended(rank)

    def _delete(self, key: str) -> None:
        if self._number > 1 or key.startswith("broadcast"):
            with self._store_errors(0):
                for number in range(int(bytes(self._store.get(key)))):
                    self._store.delete_key(f"{key}/{number}")
                self._store.delete_key(key)

    @contextlib.contextmanager
    def _store_errors(self, rank: int) -> Iterator[None]:
        """Raise `PeerError` if the store has gone, and name `rank` if that has ended before. A context manager."""
        try:
            yield
        except dist.DistNetworkError as error:
            if self._lines is not None and rank != self.rank and (ended := self._lines.ended(rank)) is not None:
                raise self._left_alone(ended) from None
            raise PeerError(
                "torchrun: its store has gone, with rank 0 or the agent of its host; see the output there:"
                f" {' '.join(str(error).split())[:200]}"
            ) from None

    def _left_alone(self, ended: int) -> PeerError:
        return PeerError(f"torchrun: rank {ended} has ended while rank {self.rank} waits for it")
