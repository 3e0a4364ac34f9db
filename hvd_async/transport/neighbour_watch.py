"""A watch over the processes of this host's ranks while this one waits for them inside MPI.

MPI learns of a rank that a signal ends, and the wait ends by an error. Of a rank that ends by itself, as by `exit` in a
library, Open MPI learns nothing where it keeps the other ranks, and waits for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from hvd_async.errors import PeerError
from hvd_async.system.failure_message import tell
from hvd_async.system.process_state import scope_of_ids, state_of

_LOOK_SECONDS = 0.25
# Time for MPI to notice by itself, counted while this process runs, and time between the ranks' messages.
_GRACE_SECONDS = 5.0
_TURN_SECONDS = 0.3


def own_process() -> str:
    """Return this process as a text for the other ranks."""
    return json.dumps([scope_of_ids(), os.getpid()])


class NeighbourWatch:
    """Ends the job when a rank of this host has gone that this rank waits for."""

    def __init__(self, rank: int, processes: Sequence[str], end: Callable[[int], object]) -> None:
        """`rank` is this one's. `processes[k]` is `own_process()` of rank k. `end` ends the job with an exit status."""
        self._rank = rank
        self._end = end
        self._processes = {}
        for other, text in enumerate(processes):
            scope, process = json.loads(text)
            if scope == scope_of_ids() != 0 and process != os.getpid():
                self._processes[other] = process

    @contextlib.contextmanager
    def waiting(self, ranks: Sequence[int]) -> Iterator[None]:
        """Watch over those of `ranks` that are on this host, inside the block, which waits for them; a context manager."""
        watched = {rank: self._processes[rank] for rank in ranks if rank in self._processes}
        is_over = threading.Event()
        turn = sum(rank < self._rank for rank in watched)
        thread = threading.Thread(target=self._run, args=(watched, turn, is_over), name="hvd-async-neighbours", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _run(self, watched: dict[int, int], turn: int, is_over: threading.Event) -> None:
        patience = _GRACE_SECONDS + _TURN_SECONDS * turn
        left, seen = patience, time.monotonic()
        while not is_over.wait(_LOOK_SECONDS):
            gone = [rank for rank, process in watched.items() if state_of(process) == ""]
            # A pause of this process, in which MPI could notice nothing, counts as one look.
            left = left - min(time.monotonic() - seen, 2 * _LOOK_SECONDS) if gone else patience
            seen = time.monotonic()
            if left < 0:
                tell(
                    self._rank,
                    PeerError(
                        f"rank {gone[0]} has ended by itself while others waited for it; its own message, or the system's log,"
                        " says why; what was saved is complete"
                    ),
                )
                self._end(PeerError.exit_status)
