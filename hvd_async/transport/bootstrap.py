"""Starting MPI, on purpose and with the settings that our windows need."""

from __future__ import annotations

import itertools
import os
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from hvd_async.errors import SetupError

if TYPE_CHECKING:
    from mpi4py import MPI


def init_mpi(environ: MutableMapping[str, str] = os.environ) -> MPI.Intracomm:
    """Initialise MPI with full thread support, if that has not happened yet, and return a duplicate of the world.

    Collective over all ranks. Settings that the user or `hvd-async launch` made are kept; where none is made, Open MPI is
    told to leave UCX out of one-sided communication (it complains at every window), and to yield when ranks outnumber
    cores (it starves itself otherwise). MPI is finalized at exit. Raises `SetupError` where MPI cannot be loaded or has no
    MPI_THREAD_MULTIPLE.
    """
    environ.setdefault("OMPI_MCA_osc", "^ucx")
    local_size = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1")
    if local_size.isdigit() and int(local_size) > len(os.sched_getaffinity(0)):
        environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = True
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise SetupError(f"MPI cannot be loaded: {reason}; launch/setup.sh installs one, or mend the library path") from None
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        library = MPI.Get_library_version().split(",")[0]
        raise SetupError(
            f"MPI thread level of {library}: got {MPI.Query_thread()}, expected MPI_THREAD_MULTIPLE"
            f" ({MPI.THREAD_MULTIPLE}); use an MPI that is built with it"
        )
    return MPI.COMM_WORLD.Dup()


class MpiGroup:
    """The ranks of an MPI communicator as a `Group`."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        """`comm` stays the caller's."""
        self.comm = comm
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()

    def exchange(self, text: str) -> list[str]:
        """See `Group.exchange`."""
        mine = np.frombuffer(text.encode(), dtype=np.uint8)
        sizes = np.zeros(self.size, dtype=np.int64)
        self.comm.Allgather(np.array([mine.size], dtype=np.int64), sizes)
        received = np.zeros(int(sizes.sum()), dtype=np.uint8)
        starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        self.comm.Allgatherv(mine, (received, (sizes.tolist(), starts[:-1])))
        return [received[a:b].tobytes().decode() for a, b in itertools.pairwise(starts)]

    def abort(self, status: int) -> NoReturn:
        """See `Group.abort`."""
        self.comm.Abort(status)
        os._exit(status)
