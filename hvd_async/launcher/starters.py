"""The command lines of mpirun, horovodrun and srun: pure text, so that they can be printed, compared and tested without MPI."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hvd_async.config import RunConfig
from hvd_async.errors import SetupError
from hvd_async.launcher.layout import Layout, Place, plan_ranks
from hvd_async.launcher.train_arguments import TrainArguments
from hvd_async.system.openmp import is_default
from hvd_async.system.processes import Command

MpiFamily = Literal["openmpi", "mpich", "intel"]
Starter = Literal["mpirun", "horovodrun-mpi", "horovodrun-gloo", "srun"]

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
# What processes on other hosts need of the caller's environment; not CUDA_VISIBLE_DEVICES, which is of one host.
_FORWARDED = ("PYTHONPATH", "LD_LIBRARY_PATH")
_FORWARDED_PREFIXES = ("OMP_", "GOMP_", "MKL_", "KMP_", "NCCL_", "UCX_", "FI_", "GLOO_", "HOROVOD_", "TORCH_", "PYTORCH_")


@dataclass(frozen=True)
class LaunchOptions:
    """By what ranks are started. `pmi`: what `srun --mpi` is to be; `forward`: names of variables for other hosts; `path`: PATH
    for the starter, where it is not the caller's; `unset`: names of variables that the starter is not to have; `is_live`:
    show lines of ranks before they are whole, as a bar needs it; `extra`: for the starter, as it is."""

    mpi: MpiFamily = "openmpi"
    starter: Starter = "mpirun"
    pmi: str = ""
    mpirun: str = "mpirun"
    horovodrun: str = "horovodrun"
    srun: str = "srun"
    python: str = sys.executable
    python_flags: tuple[str, ...] = ()
    as_root: bool = False
    forward: tuple[str, ...] = ()
    path: str | None = None
    unset: tuple[str, ...] = ()
    is_live: bool = False
    extra: tuple[str, ...] = ()


def launch_command(config: RunConfig, arguments: TrainArguments, layout: Layout, options: LaunchOptions) -> Command:
    """The command that trains `config` as `layout` says. Raises `SetupError` where there is none."""
    program = arguments.program(options.python, options.python_flags)
    options = replace(options, is_live=arguments.progress == "bar")
    threads = min(plan.threads for plan in plan_ranks(config, layout) if plan.worker is not None)
    # Ranks set it for themselves, when they have counted their cores: a guess would only stand in their way.
    are_known = all(place.are_threads_known for place in layout.places)
    environment = {"OMP_NUM_THREADS": str(threads)} if are_known else {}
    if config.strategy.kind == "single":
        return Command(program, environment)
    if options.starter == "mpirun":
        return mpirun_command(program, layout, options, environment)
    if options.starter == "srun":
        return srun_command(program, layout, options, environment)
    if options.starter == "horovodrun-gloo" and config.strategy.kind != "horovod":
        raise SetupError(
            f"horovodrun --gloo starts no MPI, which strategy {config.strategy.kind} needs;"
            " use mpirun, srun, horovodrun --mpi, or strategy horovod"
        )
    return _horovodrun_command(program, layout, options, environment)


def mpirun_command(
    program: Sequence[str], layout: Layout, options: LaunchOptions, environment: Mapping[str, str] | None = None
) -> Command:
    """`program` in the ranks of `layout` under mpirun; `environment` reaches every one of them, on all hosts."""
    if any(place.component for place in layout.places):
        raise SetupError("mpirun reaches only the first component of a heterogeneous Slurm job; use --starter srun")
    variables = {**(environment or {}), **_mpi_environment(layout, options)}
    if options.mpi == "openmpi":
        flags = _openmpi_flags(layout, variables, options)
    else:
        # Hydra counts no slots, and hands its whole environment to every host.
        flags = () if layout.is_local else ("-hosts", layout.hosts_and_slots())
    if options.path is not None:
        variables["PATH"] = options.path
    return Command(
        (options.mpirun, "-np", str(layout.num_ranks), *flags, *options.extra, *program), variables, options.unset
    )


def _openmpi_flags(layout: Layout, variables: Mapping[str, str], options: LaunchOptions) -> tuple[str, ...]:
    # By default Open MPI would bind each rank to one core, and torch's threads with it. It counts physical cores, or a batch
    # system's tasks, as slots; ours may be fewer, and a store beside the workers has no core or task of its own.
    flags: tuple[str, ...] = ("--bind-to", "none", "--map-by", "slot:OVERSUBSCRIBE")
    if options.is_live:
        flags += ("--stream-buffering", "0")  # or lines are held until they are whole; Hydra passes on what comes
    if layout.is_local:
        return flags
    names = dict.fromkeys([*sorted(variables), *options.forward])
    return (*flags, "--host", layout.hosts_and_slots(), *(word for name in names for word in ("-x", name)))


def _horovodrun_command(
    program: Sequence[str], layout: Layout, options: LaunchOptions, environment: Mapping[str, str]
) -> Command:
    if any(place.component for place in layout.places):
        raise SetupError("horovodrun does not know the components of a heterogeneous Slurm job; use --starter srun")
    variables = {**environment, **_mpi_environment(layout, options)}
    variables |= {} if options.path is None else {"PATH": options.path}
    where = () if layout.is_local else ("-H", layout.hosts_and_slots())
    if options.starter == "horovodrun-gloo":
        # On one host ranks would else listen on an interface that other hosts reach.
        controller: tuple[str, ...] = ("--gloo", *(("--network-interfaces", "lo") if layout.is_local else ()))
    elif options.mpi == "mpich":
        raise SetupError(
            "horovodrun --mpi does not know MPICH 5 (it reads 'HYDRA' and stops); use mpirun or horovodrun --gloo"
        )
    elif options.mpi == "intel":
        raise SetupError("horovodrun --mpi: got Intel MPI, with which it was never tried; use mpirun or horovodrun --gloo")
    else:
        # Without its own binding arguments horovodrun passes some that Open MPI 5 no longer understands.
        controller = ("--mpi", "--binding-args=--bind-to none --map-by slot:OVERSUBSCRIBE")
    argv = (options.horovodrun, "-np", str(layout.num_ranks), *controller, *where, *options.extra, *program)
    return Command(argv, variables, options.unset)


def srun_command(
    program: Sequence[str], layout: Layout, options: LaunchOptions, environment: Mapping[str, str] | None = None
) -> Command:
    """`program` in the ranks of `layout` in one step of the Slurm job that the caller is in."""
    variables = {**(environment or {}), **_mpi_environment(layout, options)}
    # A task that fails ends the others, which would wait for it.
    argv: list[str] = [options.srun, f"--mpi={options.pmi}", "--kill-on-bad-exit=1", "--export=ALL"]
    argv += [*(["--unbuffered"] if options.is_live else []), *options.extra]
    components = [list(places) for _, places in itertools.groupby(layout.places, key=lambda place: place.component)]
    for number, places in enumerate(components):
        if number:
            argv.append(":")
        if len(components) > 1:
            argv.append(f"--het-group={places[0].component}")
        argv += [*_step(places), *program]
    return Command(tuple(argv), variables, options.unset)


def _step(places: Sequence[Place]) -> list[str]:
    """The store's ranks are more than the tasks that the job asked for, and take no core of their own: they, and all others, use
    whatever the job has on their node."""
    names = [place.host for place in places for _ in range(place.ranks)]
    return [
        f"--ntasks={len(names)}",
        "--overcommit",
        "--overlap",
        "--cpu-bind=none",
        "--distribution=arbitrary",  # a task for each name of the list, in its order
        f"--nodelist={','.join(names)}",
    ]


def _mpi_environment(layout: Layout, options: LaunchOptions) -> dict[str, str]:
    if options.mpi == "mpich":
        # Without the first it comments on every missing network device, without the second ranks of one host listen to others.
        return {"UCX_LOG_LEVEL": "error", **({"UCX_TLS": "^tcp"} if layout.is_local else {})}
    if options.mpi == "intel":
        return {"I_MPI_PIN": "off"}  # or each rank, and torch's threads with it, gets a part of the cores, store and all
    variables = {"OMPI_MCA_osc": "^ucx"}  # or it prints a message at every window where UCX finds no device
    if layout.is_local:
        # Shared memory is all they use. With TCP every rank would listen on all interfaces; to close libfabric takes a second.
        variables["OMPI_MCA_btl"] = "^tcp,ofi"
    if layout.is_crowded:
        variables["OMPI_MCA_mpi_yield_when_idle"] = "1"  # or waiting ranks starve working ones
    if options.as_root and options.starter != "srun":  # mpirun asks for them
        variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return variables


def variables_to_unset(environ: Mapping[str, str], starter: Starter) -> tuple[str, ...]:
    """Names of what the srun that starts ranks, or their daemons, would read in a job's environment, and must not."""
    names = (*_OF_TASKS, *_OF_NODES) if starter == "srun" else _OF_TASKS
    # Of a heterogeneous job each component has its own, under a name of today and one of before.
    own = re.compile(rf"({'|'.join(names)})(_(HET|PACK)_GROUP_\d+)?")
    return tuple(sorted(name for name in environ if own.fullmatch(name)))


def variables_to_forward(environ: Mapping[str, str], more: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of what ranks on other hosts need of the caller's environment, and of `more`. Raises `SetupError` for one that is
    not set."""
    absent = [name for name in more if name not in environ]
    if absent:
        raise SetupError(
            f"--forward: got {absent[0]}, which is not set; expected the name of a variable of this environment"
        )
    usual = {
        name
        for name, value in environ.items()
        if name in _FORWARDED or (name.startswith(_FORWARDED_PREFIXES) and not is_default(name, value))
    }
    return tuple(sorted(usual | set(more)))
