"""Everything that is known of Slurm: its variables, its short forms, what srun takes from a job, and what its MPI plugins are.

Another batch system would be a file beside this one, and a line in `batch_system.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from hvd_async.cluster.batch_job import BatchJob
from hvd_async.cluster.hosts import Host
from hvd_async.cluster.launchers import Launcher, read_number
from hvd_async.cluster.mpi import MpiFamily
from hvd_async.errors import SetupError
from hvd_async.system.processes import ask

# Slurm numbers the steps that srun did not start (batch script, interactive shell, ...) down from the top of 32 bits.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
# What each MPI can be started with by srun, the better first.
_PMIS: Mapping[MpiFamily, tuple[str, ...]] = {"openmpi": ("pmix",), "mpich": ("pmi2",), "intel": ("pmi2", "pmix")}
LIST_HINT = "`srun --mpi=list` says what this Slurm has"
# What srun would take from a job's environment as if it had been asked for: the part of a node that each of the job's tasks was
# to have, and how they were to be spread. Our ranks have a list of nodes, and use whatever the job has on theirs. mpirun starts
# its daemons by srun, but reads the number of nodes itself.
_OF_TASKS = (
    *(
        "SLURM_CPUS_PER_TASK",
        "SRUN_CPUS_PER_TASK",
        "SLURM_TRES_PER_TASK",
        "SLURM_EXACT",
        "SLURM_EXCLUSIVE",
        "SLURM_HOSTFILE",
    ),
    *("SLURM_CPU_BIND", "SLURM_CPU_BIND_TYPE", "SLURM_CPU_BIND_LIST", "SLURM_CPU_BIND_VERBOSE"),
    *("SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU", "SLURM_GPU_BIND"),
)
_OF_NODES = ("SLURM_NNODES", "SLURM_JOB_NUM_NODES", "SLURM_NTASKS_PER_NODE", "SLURM_DISTRIBUTION")


# --- The environment of a task. ---------------------------------------------------------------------------------------


def is_step(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process; in a batch script or `salloc` the rank and size are there, but mean the shell."""
    step = read_number(environ, "SLURM_STEP_ID")
    return step is not None and step < _FIRST_SPECIAL_STEP


def tasks_on_node(environ: Mapping[str, str]) -> int | None:
    """Tasks of this step on this node: Slurm lists those of all nodes, such as "4(x2),3"."""
    node = read_number(environ, "SLURM_NODEID")
    tasks = numbers_of_nodes(environ.get("SLURM_STEP_TASKS_PER_NODE", "")) or []
    return tasks[node] if node is not None and node < len(tasks) else None


def pmi_of_step(environ: Mapping[str, str]) -> str:
    """What srun offers its tasks, by what it set for them: SLURM_MPI_TYPE may come from elsewhere, and not be set by default."""
    if environ.get("PMIX_NAMESPACE", "").startswith("slurm."):
        return "pmix"
    return "pmi2" if "PMI_RANK" in environ else "none"


SRUN = Launcher(
    "srun",
    "SLURM_PROCID",
    ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
    "SLURM_LOCALID",
    "",  # in SLURM_STEP_TASKS_PER_NODE, for all nodes
    f"use srun --mpi=pmix for Open MPI and --mpi=pmi2 for MPICH and Intel MPI; {LIST_HINT}",
    started_this=is_step,
    count_local=tasks_on_node,
    pmi_of=pmi_of_step,
    pmi_flags={"Open MPI": "pmix", "MPICH": "pmi2", "Intel(R) MPI": "pmi2"},
)


# --- The job. ---------------------------------------------------------------------------------------------------------


def read_job(environ: Mapping[str, str]) -> BatchJob | None:
    """The job that `environ` is of; None outside of any.

    All processes of a job have these variables: its script, what mpirun starts, and the ranks under srun.
    """
    number = environ.get("SLURM_JOB_ID")
    if not number:
        return None
    restarts = environ.get("SLURM_RESTART_COUNT", "")

    def value(name: str) -> str | None:
        return environ.get(f"SLURM_{name}") or None  # empty is as good as absent

    return BatchJob(
        id=number,
        restarts=int(restarts) if restarts.isdecimal() else 0,
        array_job=value("ARRAY_JOB_ID"),
        array_task=value("ARRAY_TASK_ID"),
        name=value("JOB_NAME"),
        partition=value("JOB_PARTITION"),
        nodes=value("JOB_NODELIST"),
        cluster=value("CLUSTER_NAME"),
    )


def read_allocation(environ: Mapping[str, str], expand: Callable[[str], Sequence[str]]) -> tuple[Host, ...] | None:
    """The nodes of the Slurm job that this environment is in, None outside of any.

    `expand` turns Slurm's short form of a list of hosts (`node[1-4,7]`) into names. A host's slots are the tasks that the job
    asked for on it; a job that asked for none has none. Raises `SetupError` where a variable cannot be understood.
    """
    if "SLURM_JOB_ID" not in environ or "SLURM_JOB_NODELIST" not in environ:
        return None
    num_components = _whole_number("SLURM_HET_SIZE", environ.get("SLURM_HET_SIZE", "1"))
    hosts: list[Host] = []
    for component in range(num_components):
        suffix = f"_HET_GROUP_{component}" if num_components > 1 else ""
        nodes = f"SLURM_JOB_NODELIST{suffix}"
        if nodes not in environ:
            raise SetupError(
                f"environment variable {nodes}: got none, expected the nodes of a component of this job, from Slurm"
            )
        names = expand(environ[nodes])
        tasks = _per_node(environ, f"SLURM_TASKS_PER_NODE{suffix}", len(names))
        cores = _per_node(environ, f"SLURM_JOB_CPUS_PER_NODE{suffix}", len(names))
        # Without tasks that were asked for, Slurm puts the number of cores there.
        slots = tasks if f"SLURM_NTASKS{suffix}" in environ else None
        gpus = _gpus(environ, suffix, slots, len(names))
        for index, name in enumerate(names):
            slot, core, gpu = (None if numbers is None else numbers[index] for numbers in (slots, cores, gpus))
            hosts.append(Host(name, slot, core, gpu, component))
    return tuple(hosts)


def _gpus(environ: Mapping[str, str], suffix: str, tasks: Sequence[int] | None, num_nodes: int) -> Sequence[int] | None:
    """Of each node; None where Slurm does not say."""
    per_node = environ.get(f"SLURM_GPUS_PER_NODE{suffix}")
    if per_node:  # `4`, `a100:4`, and for several types `a100:2,v100:2`
        return [
            sum(_whole_number("SLURM_GPUS_PER_NODE", part.rpartition(":")[2]) for part in per_node.split(","))
        ] * num_nodes
    per_task = environ.get(f"SLURM_GPUS_PER_TASK{suffix}")
    if per_task and tasks is not None:
        return [_whole_number("SLURM_GPUS_PER_TASK", per_task.rpartition(":")[2]) * number for number in tasks]
    # Of the batch script's node alone, which is the first. With a number for the whole job others may have more or fewer.
    on_node = environ.get("SLURM_GPUS_ON_NODE")
    if suffix or on_node is None or ("SLURM_GPUS" in environ and num_nodes > 1):
        return None
    return [_whole_number("SLURM_GPUS_ON_NODE", on_node)] * num_nodes


def _per_node(environ: Mapping[str, str], name: str, num_nodes: int) -> list[int] | None:
    """A number for each node; None where the variable is not there."""
    text = environ.get(name)
    if text is None:
        return None
    numbers = numbers_of_nodes(text)
    if numbers is None:
        raise SetupError(f"environment variable {name}: got {text!r}, expected a form like 4(x2),3 from Slurm; unset it")
    if len(numbers) != num_nodes:
        raise SetupError(
            f"environment variable {name}: got {text!r} for {num_nodes} nodes, expected as many numbers; unset it"
        )
    return numbers


def _whole_number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise SetupError(f"environment variable {name}: got {text!r}, expected a whole number from Slurm; unset it")
    return int(text)


def detect_allocation(environ: Mapping[str, str]) -> tuple[Host, ...] | None:
    """Return what `read_allocation` does; Slurm itself is asked what its short form of host names means."""
    return read_allocation(environ, _expand)


def _expand(text: str) -> list[str]:
    argv = ["scontrol", "show", "hostnames", text]
    done = ask(argv, "it must work where `launch` runs")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SetupError(f"{' '.join(argv)}: exit status {done.returncode}: {last}; it must work where `launch` runs")
    return done.stdout.split()


def numbers_of_nodes(text: str) -> list[int] | None:
    """A number for each node, from Slurm's short form: `2(x3),1` is 2, 2, 2, 1. None for a text that has another form."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not found:
            return None
        numbers += [int(found[1])] * int(found[2] or 1)
    return numbers


# --- srun. ------------------------------------------------------------------------------------------------------------


def parse_pmis(answer: str) -> list[str]:
    """The plugins that `srun --mpi=list` names, in any of its forms."""
    # Old ones put `srun: ` before every line; new ones list versions of pmix in a line of their own.
    words = re.findall(r"\b(?:pmix(?:_v\d+)?|pmi2|openmpi|cray_shasta)\b", answer)
    return list(dict.fromkeys(words))


def choose_pmi(family: MpiFamily, available: Sequence[str]) -> str:
    """What `srun --mpi` is to be for an MPI of `family`. Raises `SetupError` where this Slurm has nothing for it.

    With the wrong one every process would be rank 0 of a world of its own, or die with a message about PMI.
    """
    for kind in _PMIS[family]:
        for name in available:
            if name.startswith(kind):
                return name
    found, needs = ", ".join(available) or "nothing that we know", " or ".join(_PMIS[family])
    raise SetupError(
        f"srun --mpi=list: got {found}, expected {needs}, which {family} needs; use --launcher mpirun, another MPI"
        " (launch/setup.sh --mpi), or name one with --pmi"
    )


def detect_pmi(family: MpiFamily, srun: str = "srun") -> str:
    """Ask `srun` what it has. Raises `SetupError`."""
    done = ask([srun, "--mpi=list"], "is Slurm installed here?")
    return choose_pmi(family, parse_pmis(done.stdout + done.stderr))  # versions differ in where they list it


def variables_to_unset(environ: Mapping[str, str], *, starts_ranks: bool) -> tuple[str, ...]:
    """Names of what the srun that starts ranks (`starts_ranks`), or their daemons, would read in a job's environment, and must
    not."""
    names = (*_OF_TASKS, *_OF_NODES) if starts_ranks else _OF_TASKS
    # Of a heterogeneous job each component has its own, under a name of today and one of before.
    own = re.compile(rf"({'|'.join(names)})(_(HET|PACK)_GROUP_\d+)?")
    return tuple(sorted(name for name in environ if own.fullmatch(name)))
