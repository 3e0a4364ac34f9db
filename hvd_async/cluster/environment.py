"""The launcher's environment of a process: its rank, the number of ranks, and whether MPI agrees.

Pure: the environment is passed as a mapping, what MPI says as numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from hvd_async.cluster.launcher_variables import Launcher, read_number
from hvd_async.cluster.slurm import SRUN
from hvd_async.errors import SetupError

_SAME_MPI = "start it with the mpirun of the MPI that mpi4py loads, and put no other before it on PATH and LD_LIBRARY_PATH"

TORCHRUN = Launcher(
    "torchrun",
    "RANK",
    ("WORLD_SIZE",),
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "torchrun starts no MPI; use mpirun, or let `hvd-async launch` write the command",
    "TORCHELASTIC_RUN_ID",
)
# The same variables from another program, such as the operator of a PyTorchJob, or left over in a shell.
LIKE_TORCHRUN = dataclasses.replace(
    TORCHRUN,
    name="a program that sets RANK and WORLD_SIZE",
    hint="such a program starts no MPI; use mpirun, or let `hvd-async launch` write the command",
    mark="",
)

# In order of precedence. srun and mpirun may start torchrun's agents, one on each host, whose variables torchrun's ranks inherit.
# An mpirun inside a Slurm job has srun start its proxies, whose variables the ranks inherit, but its own variables count.
# Under `srun --mpi=pmi2` rank and size are also in the variables of Hydra, MPICH's mpirun: only Hydra sets the local rank, too.
LAUNCHERS = (
    TORCHRUN,
    Launcher(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_COMM_WORLD_SIZE",),
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        _SAME_MPI,
    ),
    Launcher("Intel MPI", "PMI_RANK", ("PMI_SIZE",), "MPI_LOCALRANKID", "MPI_LOCALNRANKS", _SAME_MPI, "I_MPI_HYDRA_UUID"),
    Launcher("MPICH", "PMI_RANK", ("PMI_SIZE",), "MPI_LOCALRANKID", "MPI_LOCALNRANKS", _SAME_MPI, "MPI_LOCALRANKID"),
    Launcher(
        "horovodrun --gloo",
        "HOROVOD_RANK",
        ("HOROVOD_SIZE",),
        "HOROVOD_LOCAL_RANK",
        "HOROVOD_LOCAL_SIZE",
        "horovodrun --gloo starts no MPI; use mpirun or horovodrun --mpi",
    ),
    SRUN,
    LIKE_TORCHRUN,
    Launcher("a launcher with PMI", "PMI_RANK", ("PMI_SIZE",), "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE", _SAME_MPI),
)


@dataclasses.dataclass(frozen=True)
class LaunchedAs:
    """A launcher's description of this process."""

    launcher: Launcher
    rank: int
    size: int
    local_rank: int | None
    local_size: int | None
    pmi: str = ""  # pmix, pmi2, or none (also if the launcher was given none); "" where MPI does not depend on it

    def __str__(self) -> str:
        """Return the launcher, and how it was called if that matters to MPI."""
        if not self.pmi:
            return self.launcher.name
        return f"{self.launcher.name} without --mpi" if self.pmi == "none" else f"{self.launcher.name} --mpi={self.pmi}"


def read_environment(environ: Mapping[str, str]) -> LaunchedAs | None:
    """Return the place that a launcher gave this process; None if no launcher started it.

    Raises `SetupError` if a launcher's variable is not a number.
    """
    for launcher in LAUNCHERS:
        rank = read_number(environ, launcher.rank)
        size = next((found for name in launcher.size if (found := read_number(environ, name)) is not None), None)
        if rank is None or size is None or (launcher.mark and launcher.mark not in environ):
            continue
        if launcher.started_this(environ):
            local_rank, local_size = read_number(environ, launcher.local_rank), read_number(environ, launcher.local_size)
            if local_size is None:
                local_size = launcher.count_local(environ)
            return LaunchedAs(launcher, rank, size, local_rank, local_size, launcher.pmi_of(environ))
    return None


def keeps_other_ranks(environ: Mapping[str, str]) -> bool:
    """Whether the launcher lets the other ranks live on when one dies, as Open MPI's mpirun says that it does."""
    return environ.get("OMPI_MCA_mpi_ft_enable") == "1"


def check_home(environ: Mapping[str, str]) -> None:
    """Raise `SetupError` if `HOME` is not set: Open MPI and its mpirun fail without it, in many lines that do not say so."""
    if not environ.get("HOME"):
        raise SetupError("HOME: got none, expected a folder; Open MPI does not start without one: export HOME=/tmp suffices")


def check_world(launched: LaunchedAs | None, rank: int, size: int, library: str = "") -> None:
    """Raise `SetupError` if the MPI world is not the one that the launcher started.

    `library` is the name that the MPI library reports, "" for a process without MPI. The usual case: the MPI library is
    not the launcher's, finds no launcher that it knows, and every process becomes rank 0 of 1. Each process would then
    train on its own.
    """
    if launched is None or (launched.rank, launched.size) == (rank, size):
        return
    error = SetupError(
        f"{launched} started this process as rank {launched.rank} of {launched.size}, but {_mpi(library)} says rank {rank}"
        f" of {size}: the MPI library and the launcher do not belong together; {_hint(launched, library)}"
    )
    error.is_on_all_ranks = True
    raise error


def check_launcher(launched: LaunchedAs | None, library: str, has_pmix: bool) -> None:
    """Raise `SetupError`, before MPI is initialised, if this library would end the process under this launcher.

    `has_pmix` is whether the library has a PMIx of its own. MPICH without PMIx ends a process that finds PMIx, with a
    text that names neither srun nor its flag; all other libraries start, if only as rank 0 of 1, which `check_world`
    finds.
    """
    if launched is None or launched.pmi != "pmix" or not library.startswith("MPICH") or has_pmix:
        return
    raise SetupError(
        f"{launched} started this process as rank {launched.rank} of {launched.size}, but {_mpi(library)} is built without"
        f" PMIx; {_hint(launched, library)}"
    )


def _mpi(library: str) -> str:
    """Return the library's name and version, from a text of several lines."""
    name = " ".join(library.partition(",")[0].partition("\n")[0].replace("Version:", "").strip("\0 ").split())
    return f"MPI ({name})" if name else "MPI"


def _hint(launched: LaunchedAs, library: str) -> str:
    launcher = launched.launcher
    flag = next((flag for name, flag in launcher.pmi_flags.items() if library.startswith(name)), None)
    if flag is None:
        return launcher.hint
    if flag == launched.pmi:
        return f"{launcher.name}'s {flag} and that of this MPI are incompatible; use the mpirun of this MPI inside the job"
    return f"use {launcher.name} --mpi={flag}; {launcher.pmi_hint}"
