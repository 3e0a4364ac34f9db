"""What the launcher's environment tells a process: its rank, the number of ranks, and whether MPI agrees.

Pure: the environment comes in as a mapping, what MPI says as numbers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from hvd_async.errors import SetupError

# Slurm numbers the steps that srun did not start (batch script, interactive shell, ...) down from the top of 32 bits.
_FIRST_SPECIAL_SLURM_STEP = 0xFFFFFFF0


@dataclasses.dataclass(frozen=True)
class Launcher:
    """The variables in which a launcher tells a process who it is, and what to do where MPI does not agree."""

    name: str
    rank: str
    size: tuple[str, ...]  # the first that is set counts
    local_rank: str
    local_size: str
    hint: str
    mark: str = ""  # set by this launcher alone, where others set the same rank and size


_SAME_MPI = "start it with the mpirun of the MPI that mpi4py loads, and have no other before it on PATH and LD_LIBRARY_PATH"
_LIST = "`srun --mpi=list` says what this Slurm has"

SLURM = Launcher(
    "srun",
    "SLURM_PROCID",
    ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
    "SLURM_LOCALID",
    "",  # in SLURM_STEP_TASKS_PER_NODE, for all nodes
    f"use srun --mpi=pmix for Open MPI and --mpi=pmi2 for MPICH and Intel MPI; {_LIST}",
)

TORCHRUN = Launcher(
    "torchrun",
    "RANK",
    ("WORLD_SIZE",),
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "torchrun starts no MPI; use mpirun, or let `hvd-async launch` write the command",
)

# In order of precedence. An mpirun inside a Slurm job has srun start its proxies, whose variables the ranks inherit: its own
# are those that count. Under `srun --mpi=pmi2` rank and size stand in the variables of Hydra, MPICH's mpirun, as well: only
# Hydra tells the local rank too.
LAUNCHERS = (
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
    SLURM,
    TORCHRUN,
    Launcher("a launcher with PMI", "PMI_RANK", ("PMI_SIZE",), "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE", _SAME_MPI),
)

# What MPI libraries call themselves -> the --mpi of srun that they need.
_SRUN_FLAGS = {"Open MPI": "pmix", "MPICH": "pmi2", "Intel(R) MPI": "pmi2"}


@dataclasses.dataclass(frozen=True)
class LaunchedAs:
    """What a launcher says about this process."""

    launcher: Launcher
    rank: int
    size: int
    local_rank: int | None
    local_size: int | None
    srun_mpi: str = ""  # the --mpi of srun: pmix, pmi2, or none (also where it was not given); "" under other launchers

    def __str__(self) -> str:
        """The launcher, and how it was called where that matters to MPI."""
        if self.launcher is not SLURM:
            return self.launcher.name
        return "srun without --mpi" if self.srun_mpi == "none" else f"srun --mpi={self.srun_mpi}"


def read_environment(environ: Mapping[str, str]) -> LaunchedAs | None:
    """The place that a launcher gave this process, None for one that was started without any.

    Raises `SetupError` where a launcher's variable is not a number.
    """
    for launcher in LAUNCHERS:
        rank = _number(environ, launcher.rank)
        size = next((found for name in launcher.size if (found := _number(environ, name)) is not None), None)
        if rank is None or size is None or (launcher.mark and launcher.mark not in environ):
            continue
        local_rank, local_size = _number(environ, launcher.local_rank), _number(environ, launcher.local_size)
        if launcher is not SLURM:
            return LaunchedAs(launcher, rank, size, local_rank, local_size)
        if _is_slurm_step(environ):
            return LaunchedAs(launcher, rank, size, local_rank, _tasks_on_node(environ), _srun_mpi(environ))
    return None


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise SetupError(f"environment variable {name}: got {text!r}, expected a whole number from a launcher; unset it")
    return int(text)


def _is_slurm_step(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process; in a batch script or `salloc` the rank and size are there, but mean the shell."""
    step = _number(environ, "SLURM_STEP_ID")
    return step is not None and step < _FIRST_SPECIAL_SLURM_STEP


def _tasks_on_node(environ: Mapping[str, str]) -> int | None:
    """Tasks of this step on this node: Slurm lists those of all nodes, such as "4(x2),3"."""
    node = _number(environ, "SLURM_NODEID")
    tasks = numbers_of_nodes(environ.get("SLURM_STEP_TASKS_PER_NODE", "")) or []
    return tasks[node] if node is not None and node < len(tasks) else None


def numbers_of_nodes(text: str) -> list[int] | None:
    """A number for each node, from Slurm's short form: `2(x3),1` is 2, 2, 2, 1. None for a text that has another form."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not found:
            return None
        numbers += [int(found[1])] * int(found[2] or 1)
    return numbers


def _srun_mpi(environ: Mapping[str, str]) -> str:
    """What srun offers its tasks, by what it set for them: SLURM_MPI_TYPE may come from elsewhere, and not be set by default."""
    if environ.get("PMIX_NAMESPACE", "").startswith("slurm."):
        return "pmix"
    return "pmi2" if "PMI_RANK" in environ else "none"


def check_home(environ: Mapping[str, str]) -> None:
    """Raises `SetupError` where `HOME` is not set: Open MPI and its mpirun fail without it, in many lines that do not say so."""
    if not environ.get("HOME"):
        raise SetupError("HOME: got none, expected a folder; Open MPI does not start without one: export HOME=/tmp will do")


def check_world(launched: LaunchedAs | None, rank: int, size: int, library: str = "") -> None:
    """Refuse an MPI world that is not the one that the launcher started. Raises `SetupError`.

    `library` is what the MPI library calls itself, "" for a process without MPI. The usual case: the MPI library is not the
    launcher's, finds no launcher that it knows, and every process becomes rank 0 of 1; a run would then train as many times,
    on its own, as there are processes.
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
    """Before MPI is initialised: refuse a launcher under which this library would end the process. Raises `SetupError`.

    `has_pmix` is whether the library came with one for PMIx. MPICH without it ends a process that finds PMIx, with a text
    that names neither srun nor its flag; all others start, if only as rank 0 of 1, for `check_world` to find.
    """
    if launched is None or launched.srun_mpi != "pmix" or not library.startswith("MPICH") or has_pmix:
        return
    raise SetupError(
        f"{launched} started this process as rank {launched.rank} of {launched.size}, but {_mpi(library)} is built without"
        f" PMIx; {_hint(launched, library)}"
    )


def _mpi(library: str) -> str:
    """The library's name and version, of a text that goes on for lines."""
    name = " ".join(library.partition(",")[0].partition("\n")[0].replace("Version:", "").strip("\0 ").split())
    return f"MPI ({name})" if name else "MPI"


def _hint(launched: LaunchedAs, library: str) -> str:
    flag = next((flag for name, flag in _SRUN_FLAGS.items() if library.startswith(name)), None)
    if launched.launcher is not SLURM or flag is None:
        return launched.launcher.hint
    if flag == launched.srun_mpi:
        return f"the {flag} of srun and that of this MPI do not understand each other; use its mpirun inside the job"
    return f"use srun --mpi={flag}; {_LIST}"
