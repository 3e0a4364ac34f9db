"""All facts about Slurm: its variables, its short forms, what srun reads in a job, its MPI plugins, the states of jobs.

Another batch system would be a file beside this one, and a line in `batch_system.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from hvd_async.cluster.batch_job import BatchJob
from hvd_async.cluster.hosts import Host
from hvd_async.cluster.job_state import JobState
from hvd_async.cluster.launcher_variables import Launcher, read_number
from hvd_async.cluster.mpi_family import MpiFamily
from hvd_async.cluster.pmix import job_of
from hvd_async.errors import SetupError
from hvd_async.system.processes import ask

# Slurm numbers the steps that srun did not start (batch script, interactive shell, ...) down from the top of 32 bits.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
# The plugins with which srun can start each MPI, the best first.
_PMIS: Mapping[MpiFamily, tuple[str, ...]] = {"openmpi": ("pmix",), "mpich": ("pmi2",), "intel": ("pmi2", "pmix")}
_LIST_HINT = "`srun --mpi=list` shows what this Slurm has"
# Variables of a job that srun would take for options: the part of a node for each of the job's tasks, and the distribution
# of tasks. Our ranks have a list of nodes, and share all of the job's cores on their node. mpirun starts its daemons by
# srun, but reads the number of nodes itself.
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
    """Whether srun started this process. A batch script or `salloc` has rank and size too, but they describe the shell."""
    step = read_number(environ, "SLURM_STEP_ID")
    return step is not None and step < _FIRST_SPECIAL_STEP


def tasks_on_node(environ: Mapping[str, str]) -> int | None:
    """Return the number of this step's tasks on this node. Slurm lists the numbers of all nodes, such as "4(x2),3"."""
    node = read_number(environ, "SLURM_NODEID")
    tasks = numbers_of_nodes(environ.get("SLURM_STEP_TASKS_PER_NODE", "")) or []
    return tasks[node] if node is not None and node < len(tasks) else None


def pmi_of_step(environ: Mapping[str, str]) -> str:
    """Return the PMI that srun offers its tasks, from the variables that the plugin sets. SLURM_MPI_TYPE is no guide: it may
    come from elsewhere, and is unset by default."""
    if (job_of(environ) or "").startswith("slurm."):
        return "pmix"
    return "pmi2" if "PMI_RANK" in environ else "none"


SRUN = Launcher(
    "srun",
    "SLURM_PROCID",
    ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
    "SLURM_LOCALID",
    "",  # in SLURM_STEP_TASKS_PER_NODE, for all nodes
    f"use srun --mpi=pmix for Open MPI and --mpi=pmi2 for MPICH and Intel MPI; {_LIST_HINT}",
    started_this=is_step,
    count_local=tasks_on_node,
    pmi_of=pmi_of_step,
    pmi_hint=_LIST_HINT,
    pmi_flags={"Open MPI": "pmix", "MPICH": "pmi2", "Intel(R) MPI": "pmi2"},
)


# --- The job. ---------------------------------------------------------------------------------------------------------


def read_job(environ: Mapping[str, str]) -> BatchJob | None:
    """Return the job of a process with environment `environ`; None outside of any job.

    All processes of a job have these variables: the script, processes that mpirun starts, and ranks under srun.
    """
    number = environ.get("SLURM_JOB_ID")
    if not number:
        return None
    restarts = environ.get("SLURM_RESTART_COUNT", "")

    def value(name: str) -> str | None:
        return environ.get(f"SLURM_{name}") or None  # empty counts as absent

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
    """Return the nodes of the Slurm job to which `environ` belongs; None outside of any job.

    `expand` turns Slurm's short form of a list of hosts (`node[1-4,7]`) into names. A host's slots are the tasks that the
    job asked for on that host; None if the job asked for no tasks. Raises `SetupError` for a malformed variable.
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
                f"environment variable {nodes}: not set, expected the nodes of a component of this job, from Slurm"
            )
        names = expand(environ[nodes])
        tasks = _per_node(environ, f"SLURM_TASKS_PER_NODE{suffix}", len(names))
        cores = _per_node(environ, f"SLURM_JOB_CPUS_PER_NODE{suffix}", len(names))
        # If the job asked for no tasks, Slurm puts the number of cores there.
        slots = tasks if f"SLURM_NTASKS{suffix}" in environ else None
        gpus = _gpus(environ, suffix, slots, len(names))
        for index, name in enumerate(names):
            slot, core, gpu = (None if numbers is None else numbers[index] for numbers in (slots, cores, gpus))
            hosts.append(Host(name, slot, core, gpu, component))
    return tuple(hosts)


def _gpus(environ: Mapping[str, str], suffix: str, tasks: Sequence[int] | None, num_nodes: int) -> Sequence[int] | None:
    """Return the number of GPUs of each node; None if Slurm does not tell."""
    per_node = environ.get(f"SLURM_GPUS_PER_NODE{suffix}")
    if per_node:  # `4`, `a100:4`, and for several types `a100:2,v100:2`
        return [
            sum(_whole_number("SLURM_GPUS_PER_NODE", part.rpartition(":")[2]) for part in per_node.split(","))
        ] * num_nodes
    per_task = environ.get(f"SLURM_GPUS_PER_TASK{suffix}")
    if per_task and tasks is not None:
        return [_whole_number("SLURM_GPUS_PER_TASK", per_task.rpartition(":")[2]) * number for number in tasks]
    # This variable is for the batch script's node only, the first. If the job asked for a total, other nodes may differ.
    on_node = environ.get("SLURM_GPUS_ON_NODE")
    if suffix or on_node is None or ("SLURM_GPUS" in environ and num_nodes > 1):
        return None
    return [_whole_number("SLURM_GPUS_ON_NODE", on_node)] * num_nodes


def _per_node(environ: Mapping[str, str], name: str, num_nodes: int) -> list[int] | None:
    """Return the number for each node in variable `name`; None if the variable is not set."""
    text = environ.get(name)
    if text is None:
        return None
    numbers = numbers_of_nodes(text)
    if numbers is None:
        raise SetupError(f"environment variable {name}: got {text!r}, expected a form like 4(x2),3 from Slurm; unset it")
    if len(numbers) != num_nodes:
        raise SetupError(
            f"environment variable {name}: got {text!r} for {num_nodes} nodes, expected {num_nodes} numbers; unset it"
        )
    return numbers


def _whole_number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise SetupError(f"environment variable {name}: got {text!r}, expected a whole number from Slurm; unset it")
    return int(text)


def detect_allocation(environ: Mapping[str, str]) -> tuple[Host, ...] | None:
    """Return the nodes of the job, as `read_allocation` does. Asks Slurm's scontrol to expand its short form of host
    names."""
    return read_allocation(environ, _expand)


def _expand(text: str) -> list[str]:
    argv = ["scontrol", "show", "hostnames", text]
    done = ask(argv, "it must work where `launch` runs")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise SetupError(f"{' '.join(argv)}: exit status {done.returncode}: {last}; it must work where `launch` runs")
    return done.stdout.split()


def numbers_of_nodes(text: str) -> list[int] | None:
    """Return the number for each node from Slurm's short form: `2(x3),1` is 2, 2, 2, 1. None for a text of another form."""
    numbers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not found:
            return None
        numbers += [int(found[1])] * int(found[2] or 1)
    return numbers


# --- srun. ------------------------------------------------------------------------------------------------------------


def parse_pmis(answer: str) -> list[str]:
    """Return the plugins in the output of `srun --mpi=list`, of any version of Slurm."""
    # Old versions put `srun: ` before every line; new versions list versions of pmix on a separate line.
    words = re.findall(r"\b(?:pmix(?:_v\d+)?|pmi2|openmpi|cray_shasta)\b", answer)
    return list(dict.fromkeys(words))


def choose_pmi(family: MpiFamily, available: Sequence[str]) -> str:
    """Return the value of `srun --mpi` for an MPI of `family`. Raises `SetupError` if this Slurm has no plugin for it.

    With the wrong plugin every process would be rank 0 of a world of its own, or die with a message about PMI.
    """
    for kind in _PMIS[family]:
        for name in available:
            if name.startswith(kind):
                return name
    found, needs = ", ".join(available) or "no known plugin", " or ".join(_PMIS[family])
    raise SetupError(
        f"srun --mpi=list: got {found}, expected {needs}, which {family} needs; use --launcher mpirun, another MPI,"
        " such as the cluster's, or name one with --pmi"
    )


def detect_pmi(family: MpiFamily, srun: str = "srun") -> str:
    """Return the value of `srun --mpi` for an MPI of `family`, from the plugins that `srun` lists. Raises `SetupError`."""
    done = ask([srun, "--mpi=list"], "is Slurm installed here?")
    return choose_pmi(family, parse_pmis(done.stdout + done.stderr))  # versions differ in the stream


def variables_to_unset(environ: Mapping[str, str], *, starts_ranks: bool) -> tuple[str, ...]:
    """Return the names of the variables of a job that srun must not read when it starts ranks (`starts_ranks`) or, for
    mpirun, daemons."""
    names = (*_OF_TASKS, *_OF_NODES) if starts_ranks else _OF_TASKS
    # Each component of a heterogeneous job has its own variables, under a present and a former name.
    own = re.compile(rf"({'|'.join(names)})(_(HET|PACK)_GROUP_\d+)?")
    return tuple(sorted(name for name in environ if own.fullmatch(name)))


# --- Jobs that this process has submitted. ----------------------------------------------------------------------------

_STATES: Mapping[str, JobState] = {
    **dict.fromkeys(("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"), "pending"),
    **dict.fromkeys(("RUNNING", "COMPLETING", "SUSPENDED", "SIGNALING", "STOPPED", "RESIZING", "STAGE_OUT"), "running"),
    "COMPLETED": "completed",
    "CANCELLED": "cancelled",
}
UNKNOWN = re.compile(r"Invalid job id|accounting (storage )?is disabled", re.IGNORECASE)
"""What the commands print of a job that they do not know, or a sacct that knows none."""


def parse_submitted(printed: str) -> str | None:
    """Return the number of the job from what sbatch printed."""
    found = re.search(r"^Submitted batch job (\d+)", printed, re.MULTILINE)
    return found[1] if found else None


def state_commands(job: str) -> tuple[tuple[str, ...], ...]:
    """Return commands that tell the state of a job, the second for a Slurm that keeps accounts, if the first knows it no more."""
    return ("scontrol", "show", "job", "--oneliner", job), ("sacct", "-X", "-n", "-P", "-o", "State", "-j", job)


def parse_state(printed: str) -> JobState | None:
    """Return the state in the output of such a command; None if it tells none."""
    found = re.search(r"\bJobState=([A-Z_]+)", printed) or re.match(r"([A-Z_]{2,})\b", printed)
    return None if found is None else _STATES.get(found[1], "failed")


def cancel_command(job: str) -> tuple[str, ...]:
    """Return the command that cancels a job."""
    return ("scancel", job)
