"""Memory that processes of one host share without a name in a file system, so that none is left behind when they die."""

from __future__ import annotations

import mmap
import os
import secrets
from dataclasses import dataclass

from hvd_async.errors import SetupError
from hvd_async.system.process_state import scope_of_ids, state_of


@dataclass(frozen=True)
class Place:
    """Where the memory is: `descriptor` of `process`, whose id has a meaning in `scope` (see `scope_of_ids`). `token`: a random
    number, by which the memory is known from that of a later process with the same id."""

    process: int
    scope: int
    descriptor: int
    num_bytes: int
    token: int

    @property
    def name(self) -> str:
        """Name under which the kernel shows the memory."""
        return f"hvd-async-{self.token:x}"

    @property
    def is_here(self) -> bool:
        """Whether the owner's process can be seen from this one."""
        return self.scope != 0 and self.scope == scope_of_ids()


def make(num_bytes: int) -> Place:
    """Make zeroed memory of `num_bytes` and return where it is. It lives as long as the descriptor is open or anybody maps it."""
    token = secrets.randbits(62)
    descriptor = os.memfd_create(f"hvd-async-{token:x}")
    os.ftruncate(descriptor, num_bytes)
    return Place(os.getpid(), scope_of_ids(), descriptor, num_bytes, token)


def map_place(place: Place) -> memoryview:
    """Map the memory at `place`, which is on this host. Raises `SetupError` if its owner has gone or closed it, or belongs to
    another user."""
    hold = Hold(place)
    try:
        return hold.map()
    finally:
        hold.close()


class Hold:
    """Memory at a place, kept by this process even when all that use it have ended."""

    def __init__(self, place: Place) -> None:
        """Hold the memory at `place`. Raises `SetupError` as `map_place` does."""
        self.place = place
        self._descriptor = _open(place)

    def map(self) -> memoryview:
        """Map the memory."""
        return memoryview(mmap.mmap(self._descriptor, self.place.num_bytes))

    def close(self) -> None:
        """Hold the memory no more; what is mapped stays."""
        os.close(self._descriptor)


def _open(place: Place) -> int:
    """Open the memory at `place`, which is on this host; see `map_place`."""
    path = f"/proc/{place.process}/fd/{place.descriptor}"
    try:
        if not os.readlink(path).startswith(f"/memfd:{place.name} "):
            raise ValueError("it is another file: it was closed, or the process is a later one")
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        gone = "" if state_of(place.process) else ", which has ended"
        raise SetupError(f"the memory of process {place.process}{gone}: cannot be opened: {error}") from None
