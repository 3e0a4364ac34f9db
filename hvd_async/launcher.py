"""The command lines that start a run: pure text, so that they can be printed, compared and tested without MPI.

`launch_command` is the whole of it for a run; `mpirun_command` starts any program in ranks. Only `detect_mpi` and
`run_command` touch the machine.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Literal, get_args

from hvd_async.config import RunConfig
from hvd_async.errors import SetupError
from hvd_async.ties import tie_to
from hvd_async.topology import share_cores

MpiFamily = Literal["openmpi", "mpich"]
Starter = Literal["mpirun", "horovodrun-mpi", "horovodrun-gloo"]

_DETECTION_TIMEOUT_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Host:
    """A machine and the number of ranks it takes."""

    name: str
    slots: int

    def __str__(self) -> str:
        """The form that every launcher reads: `name:slots`."""
        return f"{self.name}:{self.slots}"


@dataclasses.dataclass(frozen=True)
class LaunchOptions:
    """Where and by what ranks are started."""

    mpi: MpiFamily = "openmpi"
    starter: Starter = "mpirun"
    mpirun: str = "mpirun"
    horovodrun: str = "horovodrun"
    python: str = sys.executable
    hosts: tuple[Host, ...] = ()  # empty: this machine; otherwise filled in order, rank 0 on the first
    num_cores: int = 1  # of a host; of the smallest, where they differ
    as_root: bool = False
    extra: tuple[str, ...] = ()  # for mpirun or horovodrun, as they are


@dataclasses.dataclass(frozen=True)
class TrainArguments:
    """What every rank is told."""

    config_path: str
    overrides: tuple[str, ...] = ()
    resume: bool = False
    overwrite: bool = False
    progress: str = "auto"

    def program(self, python: str) -> tuple[str, ...]:
        """The program of one rank."""
        sets = tuple(word for override in self.overrides for word in ("--set", override))
        begin = [flag for flag, is_set in (("--resume", self.resume), ("--overwrite", self.overwrite)) if is_set]
        begin += ["--progress", self.progress] if self.progress != "auto" else []
        return (python, "-m", "hvd_async", "train", self.config_path, *sets, *begin)


@dataclasses.dataclass(frozen=True)
class Command:
    """An argument vector and the variables added to the caller's environment."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]

    def shell_text(self) -> str:
        """One line that does the same when pasted into a shell."""
        words = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.environment.items())]
        return " ".join([*words, shlex.join(self.argv)])


def num_ranks_of(config: RunConfig, num_workers: int) -> int:
    """Processes to start: the workers, and the store where it has a process to itself."""
    if num_workers < 1:
        raise SetupError(f"number of workers: got {num_workers}, expected 1 or more")
    strategy = config.strategy
    if strategy.kind == "single" and num_workers != 1:
        raise SetupError(
            f"number of workers: got {num_workers}, expected 1 for strategy single;"
            " for more choose one with --set strategy.kind=async (or horovod, ddp)"
        )
    dedicated = strategy.kind == "async" and strategy.placement == "dedicated"
    return num_workers + config.store.shards if dedicated else num_workers


def launch_command(config: RunConfig, arguments: TrainArguments, num_workers: int, options: LaunchOptions) -> Command:
    """The command that trains `config` with `num_workers` workers. Raises `SetupError` where there is none."""
    num_ranks = num_ranks_of(config, num_workers)
    program = arguments.program(options.python)
    threads = config.training.threads or share_cores(
        options.num_cores, _most_on_one_host(num_workers, options.hosts), beside_store=num_ranks > num_workers
    )
    environment = {"OMP_NUM_THREADS": str(threads)}
    if config.strategy.kind == "single":
        return Command(program, environment)
    if options.starter == "mpirun":
        return mpirun_command(program, num_ranks, options, environment)
    if options.starter == "horovodrun-gloo" and config.strategy.kind != "horovod":
        raise SetupError(
            f"horovodrun --gloo starts no MPI, which strategy {config.strategy.kind} needs;"
            " use mpirun, horovodrun --mpi, or strategy horovod"
        )
    return _horovodrun_command(program, num_ranks, options, environment)


def mpirun_command(
    program: Sequence[str], num_ranks: int, options: LaunchOptions, environment: Mapping[str, str] | None = None
) -> Command:
    """`program` in `num_ranks` processes under mpirun; `environment` reaches every one of them, on all hosts."""
    _check_slots(num_ranks, options.hosts)
    variables = {**(environment or {}), **_mpi_environment(num_ranks, options)}
    flags = _openmpi_flags(variables, options) if options.mpi == "openmpi" else _mpich_flags(options)
    return Command((options.mpirun, "-np", str(num_ranks), *flags, *options.extra, *program), variables)


def _openmpi_flags(variables: Mapping[str, str], options: LaunchOptions) -> tuple[str, ...]:
    # By default Open MPI would bind each rank to one core, and torch's threads with it.
    binding = ("--bind-to", "none")
    if not options.hosts:
        # It counts physical cores as slots; ours may be fewer, and a store beside the workers costs no core of its own.
        return (*binding, "--map-by", ":OVERSUBSCRIBE")
    forwarded = (word for name in sorted(variables) for word in ("-x", name))
    return (*binding, "--host", _host_list(options.hosts), *forwarded)


def _mpich_flags(options: LaunchOptions) -> tuple[str, ...]:
    # Hydra neither binds nor counts slots, and hands its whole environment to every host.
    return ("-hosts", _host_list(options.hosts)) if options.hosts else ()


def _horovodrun_command(
    program: Sequence[str], num_ranks: int, options: LaunchOptions, environment: Mapping[str, str]
) -> Command:
    _check_slots(num_ranks, options.hosts)
    variables = {**environment, **_mpi_environment(num_ranks, options)}
    where = ("-H", _host_list(options.hosts)) if options.hosts else ()
    if options.starter == "horovodrun-gloo":
        controller: tuple[str, ...] = ("--gloo",)
    elif options.mpi == "mpich":
        raise SetupError(
            "horovodrun --mpi does not know MPICH 5 (it reads 'HYDRA' and stops); use mpirun or horovodrun --gloo"
        )
    else:
        # Without its own binding arguments horovodrun passes some that Open MPI 5 no longer understands.
        mapping = "slot" if options.hosts else "slot:OVERSUBSCRIBE"
        controller = ("--mpi", f"--binding-args=--bind-to none --map-by {mapping}")
    return Command((options.horovodrun, "-np", str(num_ranks), *controller, *where, *options.extra, *program), variables)


def _mpi_environment(num_ranks: int, options: LaunchOptions) -> dict[str, str]:
    if options.mpi == "mpich":
        return {"UCX_LOG_LEVEL": "error"}  # or it comments on every missing network device
    variables = {"OMPI_MCA_osc": "^ucx"}  # or it prints a message at every window where UCX finds no device
    if _most_on_one_host(num_ranks, options.hosts) > options.num_cores:
        variables["OMPI_MCA_mpi_yield_when_idle"] = "1"  # or waiting ranks starve working ones
    if options.as_root:
        variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return variables


def _check_slots(num_ranks: int, hosts: Sequence[Host]) -> None:
    slots = sum(host.slots for host in hosts)
    if hosts and num_ranks > slots:
        raise SetupError(
            f"{num_ranks} ranks do not fit on {_host_list(hosts)}: {slots} slots; add hosts or slots (NAME:SLOTS)"
            " (strategy async with a dedicated store has one rank more than workers)"
        )


def _most_on_one_host(num_ranks: int, hosts: Sequence[Host]) -> int:
    """Ranks on the fullest host, when hosts are filled in order."""
    most, left = (0, num_ranks) if hosts else (num_ranks, 0)
    for host in hosts:
        most, left = max(most, min(host.slots, left)), left - min(host.slots, left)
    return most


def _host_list(hosts: Sequence[Host]) -> str:
    return ",".join(str(host) for host in hosts)


def parse_hosts(text: str, source: str) -> tuple[Host, ...]:
    """Hosts from a hostfile in any of the common forms, or from `--hosts a:2,b:2`; `source` names it in errors.

    One host a line or between commas: `name`, `name:2` (MPICH, Horovod) or `name slots=2` (Open MPI); `#` starts a comment.
    """
    hosts: list[Host] = []
    for line in text.splitlines():
        for entry in line.partition("#")[0].split(","):
            if not entry.strip():
                continue
            found = re.fullmatch(r"([\w.-]+)(?:\s*:\s*(\d+)|\s+slots\s*=\s*(\d+).*)?", entry.strip())
            slots = int(found[2] or found[3] or 1) if found else 0
            if not found or slots < 1:
                raise SetupError(f"{source}: got {entry.strip()!r}, expected NAME, NAME:SLOTS or NAME slots=SLOTS")
            hosts.append(Host(found[1], slots))
    if not hosts:
        raise SetupError(f"{source}: names no host; expected NAME:SLOTS, one a line or between commas")
    return tuple(hosts)


def parse_mpi_family(version_text: str) -> MpiFamily | None:
    """The family of the mpirun that answers `--version` with this text, None for one we do not know."""
    if "open mpi" in version_text.lower() or "open-mpi" in version_text.lower():
        return "openmpi"
    return "mpich" if "hydra" in version_text.lower() or "mpich" in version_text.lower() else None


def detect_mpi(mpirun: str = "mpirun") -> MpiFamily:
    """Ask `mpirun` what it is. Raises `SetupError` where there is none, or one of another kind."""
    try:
        answer = subprocess.run(
            [mpirun, "--version"], capture_output=True, text=True, timeout=_DETECTION_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"{mpirun} --version: {error}; run launch/setup.sh, or put an MPI's mpirun on PATH") from None
    family = parse_mpi_family(answer.stdout + answer.stderr)
    if family is None:
        first = (answer.stdout + answer.stderr).strip().partition("\n")[0]
        raise SetupError(f"{mpirun} --version: got {first!r}, expected one of {', '.join(get_args(MpiFamily))}")
    return family


def run_command(command: Command, environ: Mapping[str, str], stop_signal: int | None = None) -> int:
    """Run `command` on top of `environ`, pass SIGINT and SIGTERM on to it, and return its exit status.

    The first of them is passed on as `stop_signal`, if given: mpirun would kill its ranks for the signal itself, but hands
    SIGUSR1 to all of them, who then save everything. Blocks until the command ends. To be called in the main thread, as
    signal handlers are.
    """
    children: list[subprocess.Popen[bytes]] = []
    early: list[int] = []
    received: list[int] = []

    def forward(signal_number: int, frame: FrameType | None) -> None:
        passed_on = signal_number if received or stop_signal is None else stop_signal
        received.append(signal_number)
        if children:
            children[0].send_signal(passed_on)
        else:
            early.append(passed_on)

    # Handlers first: a signal that found the command started and no handler would leave it behind.
    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        # A session of its own, or a terminal's Ctrl-C would come twice, once through us: mpirun kills on the second.
        # Tied to us: killed, we could not end it.
        tie = functools.partial(tie_to, os.getpid())
        environment = {**environ, **command.environment}
        children.append(subprocess.Popen(command.argv, env=environment, start_new_session=True, preexec_fn=tie))
        for number in early:
            children[0].send_signal(number)
        status = children[0].wait()
    except OSError as error:
        raise SetupError(f"{command.argv[0]}: cannot be started: {error.strerror}; is it installed and on PATH?") from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received and stop_signal is not None and status in (-stop_signal, 128 + stop_signal):
        return 128 + received[0]  # it stopped for what we were sent
    return 128 - status if status < 0 else status
