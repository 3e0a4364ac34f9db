"""A watch over the processes of this host's ranks while this one waits for them inside MPI.

MPI learns of a rank that a signal ends, and the wait ends by an error. Of a rank that ends by itself, as by `exit` in a
library, Open MPI learns nothing where it keeps the other ranks, and waits for ever; of one that is stopped no MPI learns.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

from hvd_async.errors import PeerError
from hvd_async.system.failure_message import tell
from hvd_async.system.patience import Patience
from hvd_async.system.process_state import scope_of_ids, state_of

_LOOK_SECONDS = 0.25
# Time for MPI to notice by itself, counted while this process runs, and time between the ranks' messages.
_GRACE_SECONDS = 5.0
_TURN_SECONDS = 0.3
ITS_OWN_MESSAGE = "its own message, or the system's log, says why"
STOPPED_SECONDS = 60.0
"""How long a rank may be stopped (SIGSTOP) while others wait for it inside MPI, at least."""


def own_process() -> str:
    """Return this process as a text for the other ranks."""
    return json.dumps([scope_of_ids(), os.getpid()])


class NeighbourWatch:
    """Ends the job when a rank of this host has gone that this rank waits for."""

    def __init__(
        self, rank: int, processes: Sequence[str], end: Callable[[int], object], stopped_seconds: float = STOPPED_SECONDS
    ) -> None:
        """`rank` is this one's. `processes[k]` is `own_process()` of rank k. `end` ends the job with an exit status.
        `stopped_seconds`: how long a rank may be stopped."""
        self._rank = rank
        self._stopped_seconds = stopped_seconds
        self._end = end
        self._processes = {}
        for other, text in enumerate(processes):
            scope, process = json.loads(text)
            if scope == scope_of_ids() != 0 and process != os.getpid():
                self._processes[other] = process

    @contextlib.contextmanager
    def waiting(self, ranks: Sequence[int], *, goes_on: bool = False) -> Iterator[None]:
        """Watch over those of `ranks` that are on this host, inside the block, which waits for them; a context manager.

        `goes_on`: the block goes on without a rank above 0 whose death MPI notices, so that one that is stopped is killed.
        """
        watched = {rank: self._processes[rank] for rank in ranks if rank in self._processes}
        is_over = threading.Event()
        turn = sum(rank < self._rank for rank in watched)
        arguments = (watched, turn, is_over, goes_on)
        thread = threading.Thread(target=self._run, args=arguments, name="hvd-async-neighbours", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _run(self, watched: dict[int, int], turn: int, is_over: threading.Event, goes_on: bool) -> None:
        wait = _TURN_SECONDS * turn
        with_gone = Patience(_GRACE_SECONDS + wait, _LOOK_SECONDS)
        with_stopped = Patience(self._stopped_seconds + wait, _LOOK_SECONDS)
        while not is_over.wait(_LOOK_SECONDS):
            states = {rank: state_of(process) for rank, process in watched.items()}
            gone = [rank for rank, state in states.items() if state == ""]
            stopped = [rank for rank, state in states.items() if state == "T"]
            if with_gone.is_over(lasts=bool(gone)):
                self._give_up(f"rank {gone[0]} has ended by itself while others waited for it; {ITS_OWN_MESSAGE}")
            elif with_stopped.is_over(lasts=bool(stopped)):
                process = watched[stopped[0]]
                stop = f"its process {process} has been stopped (SIGSTOP) for {self._stopped_seconds:.0f} s"
                found = f"rank {stopped[0]}: {stop} while others wait for it"
                if goes_on and stopped[0] > 0:
                    tell(self._rank, PeerError(f"{found}; it is ended, and they go on"))
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                else:
                    self._give_up(found)

    def _give_up(self, message: str) -> None:
        tell(self._rank, PeerError(f"{message}; what was saved is complete"))
        self._end(PeerError.exit_status)
