"""An mpirun that waits for a host which it cannot reach any more: it asks its processes there to end, and gets no answer."""

from __future__ import annotations

import time

from hvd_async.system.process_state import children_of, rank_of
from hvd_async.system.standard_streams import tell


class Desertion:
    """Finds out that rank 0, without which no run goes on, has ended long ago, and mpirun has not."""

    def __init__(self, patience_seconds: float) -> None:
        """`patience_seconds`: how long mpirun may take to end after rank 0."""
        self._patience_seconds = patience_seconds
        self.is_sure = False
        """Whether it was found."""
        self._was_here = False
        self._since: float | None = None

    def is_found(self, mpirun: int) -> bool:
        """Look at the children of the process `mpirun`; return whether it waits in vain, once, and print a line
        then. To be called
        several times a minute. False where rank 0 is on another host."""
        if any(rank_of(child) == 0 for child in children_of(mpirun) or ()):
            self._was_here, self._since = True, None
        elif self._was_here and self._since is None:
            self._since = time.monotonic()
        if self.is_sure or self._since is None or time.monotonic() - self._since < self._patience_seconds:
            return False
        self.is_sure = True
        seconds = f"{self._patience_seconds:.0f} s"
        tell(
            f"launch: mpirun is killed: rank 0 has ended {seconds} ago, and mpirun still waits for ranks or for another host\n"
        )
        return True
