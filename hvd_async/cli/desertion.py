"""An mpirun that waits for a host which it cannot reach any more: it asks its processes there to end, and gets no answer."""

from __future__ import annotations

import os
from collections.abc import Mapping

from hvd_async.cluster.pmix import job_of, read_pmix
from hvd_async.system.patience import Patience
from hvd_async.system.process_state import children_of, state_of, variables_of
from hvd_async.system.standard_streams import tell

_LOOK_SECONDS = 0.5


class Desertion:
    """Finds out that rank 0, without which no run goes on, has ended long ago, and mpirun has not."""

    def __init__(self, patience_seconds: float, environ: Mapping[str, str] = os.environ) -> None:
        """`patience_seconds`: how long mpirun may take to end after rank 0. `environ`: the variables with which it is started,
        perhaps those of a rank of another job."""
        self.is_sure = False
        """Whether it was found."""
        self._patience_seconds = patience_seconds
        self._outer = job_of(environ)
        self._rank: int | None = None  # the process of rank 0
        self._patience = Patience(patience_seconds, _LOOK_SECONDS)

    def is_found(self, mpirun: int) -> bool:
        """Look at the processes that `mpirun` has started, as one should about twice a second. Return, once, that it waits in
        vain, and print a line then. Never if rank 0 is on another host."""
        if self._rank is None:
            self._rank = next((child for child in sorted(children_of(mpirun) or ()) if self._is_first(child)), None)
        has_ended = self._rank is not None and not state_of(self._rank)
        if self.is_sure or not self._patience.is_over(lasts=has_ended):
            return False
        self.is_sure = True
        seconds = f"{self._patience_seconds:.0f} s"
        tell(
            f"launch: killed mpirun: rank 0 ended {seconds} ago, and mpirun still waits for other ranks, or for another host\n"
        )
        return True

    def _is_first(self, process: int) -> bool:
        started_as = read_pmix(variables_of(process))
        return started_as is not None and started_as.rank == 0 and started_as.job != self._outer
