"""`hvd-async launch`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
from typing import TYPE_CHECKING

from hvd_async.cli.arguments import add_config, check_can_be_read_again, refuse, verb
from hvd_async.cli.batch_arguments import add_resources, check_no_script
from hvd_async.cli.desertion import Desertion
from hvd_async.cli.launch_program import UNKNOWN_OUTPUT, program_config
from hvd_async.cli.launch_script import check_container, script_asked, train_arguments, wanted, write_script
from hvd_async.cli.starts import STORE_RESTARTS, start_once, start_until_done
from hvd_async.errors import ConfigError, SetupError
from hvd_async.system import interpreter
from hvd_async.system.extras import require

if TYPE_CHECKING:
    from hvd_async.cli.holding import StoreKeeper
    from hvd_async.cluster.hosts import Host
    from hvd_async.config import RunConfig
    from hvd_async.launcher import Begin, LauncherName, LaunchOptions, LaunchOutcome, RankLayout
    from hvd_async.system.processes import Command

# Arguments that have no effect in a batch script.
_OF_COMMANDS = ("hosts", "hostfile", "store_apart")


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verb(
        verbs,
        "launch",
        "start a run with mpirun, horovodrun or srun, or write a batch script for Slurm, PBS or LSF",
        _launch,
    )
    parser.usage = "%(prog)s [-h] [options] CONFIG\n       %(prog)s [-h] [options] [CONFIG] -- PROGRAM [ARGUMENT ...]"
    parser.set_defaults(program=None)
    _add_launch(parser)


def _add_launch(parser: argparse.ArgumentParser) -> None:
    add_config(parser, is_optional=True)
    parser.add_argument("--dry-run", action="store_true", help="print what would be started or submitted, and do nothing")
    ranks = parser.add_argument_group("ranks", "Default in a Slurm job: a worker for each task.")
    ranks.add_argument("-w", "--workers", type=int, metavar="N", help="ranks that train (default 2; 1 for strategy single)")
    ranks.add_argument("--workers-per-node", type=int, metavar="N", help="workers on each host")
    ranks.add_argument(
        "--gpus-per-node",
        metavar="[TYPE:]N",
        help="GPUs of each host; by default one worker for each GPU; the type, such as a100, is for batch scripts",
    )
    ranks.add_argument(
        "--store-apart", action="store_true", help="reserve the first component of a heterogeneous Slurm job for the store"
    )
    _add_starting(parser)
    batch = parser.add_argument_group("batch scripts")
    systems = batch.add_mutually_exclusive_group()
    for flag, title, choices in (
        ("slurm", "Slurm", ("train", "train-requeue", "heterogeneous")),
        ("pbs", "PBS Professional or OpenPBS", ("train", "train-requeue")),
        ("lsf", "LSF", ("train", "train-requeue")),
    ):
        systems.add_argument(
            f"--{flag}",
            choices=choices,
            nargs="?",
            const="train",
            help=f"print a batch script for {title} (default train) like the ready ones of a checkout",
        )
    add_resources(batch)


def _add_starting(parser: argparse.ArgumentParser) -> None:
    starting = parser.add_argument_group("starting")
    starting.add_argument(
        "--launcher",
        choices=("mpirun", "srun", "horovodrun-mpi", "horovodrun-gloo"),
        help="what starts the ranks (default mpirun; srun in a batch script)",
    )
    starting.add_argument(
        "--restarts",
        type=int,
        metavar="N",
        help="after a failure, start again with --auto-resume, at most N times; not after an error in the input or a stop"
        f" (default 0, and {STORE_RESTARTS} after a death of the store whose state was saved from its memory)",
    )
    starting.add_argument(
        "--respawn",
        type=int,
        metavar="N",
        help="when a worker dies, start another in its place on this host, which must be the store's, at most N times;"
        " docs/reliability.md",
    )
    starting.add_argument("--mpi", choices=("openmpi", "mpich", "intel"), help="MPI implementation; default: ask mpirun")
    starting.add_argument("--pmi", metavar="NAME", help="value of srun --mpi; default: what Slurm offers for this MPI")
    where = starting.add_mutually_exclusive_group()
    where.add_argument(
        "--hosts",
        metavar="HOST:SLOTS,...",
        help="hosts and ranks on each, the store's first; default: this host, or those of the job",
    )
    where.add_argument("--hostfile", type=pathlib.Path, metavar="FILE", help="file of hosts as in --hosts, one per line")
    starting.add_argument(
        "--container",
        metavar="IMAGE",
        help="run the ranks in this image of Apptainer or Singularity, which has hvd_async for its `python`",
    )
    starting.add_argument(
        "--bind",
        action="append",
        default=[],
        metavar="PATH[:PATH[:ro]]",
        help="folder of the host to see in the container, besides the current one and those of the run; may be repeated",
    )
    starting.add_argument(
        "--forward",
        action="append",
        default=[],
        metavar="NAME",
        help="environment variable to pass to ranks on other hosts; may be repeated",
    )
    starting.add_argument(
        "--extra",
        action="append",
        default=[],
        metavar="ARG",
        help="argument passed to the launcher unchanged; may be repeated",
    )


def _launch(arguments: argparse.Namespace) -> int:
    from hvd_async.config import load_config

    if arguments.program is not None:
        config = program_config(arguments)
    elif arguments.config is None:
        raise ConfigError("launch: got no CONFIG, expected the YAML file of a run, or -- and a program to start")
    elif arguments.config.endswith(".py"):
        raise ConfigError(
            f"launch: got the script {arguments.config} as CONFIG, expected -- before it: hvd-async launch"
            f" --set strategy.kind=async -- python {arguments.config}"
        )
    else:
        check_can_be_read_again(arguments.config)
        config = load_config(arguments.config, arguments.overrides)
    if (asked := script_asked(arguments)) is not None:
        refuse(arguments, _OF_COMMANDS, f"--{asked[0].name}")
        return write_script(config, arguments, *asked)
    check_no_script(arguments, systems="--slurm, --pbs or --lsf")
    return _run(config, arguments)


def _run(config: RunConfig, arguments: argparse.Namespace) -> int:
    from hvd_async.cli.launched_run import LaunchedRun
    from hvd_async.cluster.batch_system import detect_allocation
    from hvd_async.cluster.environment import check_home
    from hvd_async.launcher import launch_command, lay_out
    from hvd_async.runs.folder import RunFolder

    if (arguments.restarts or 0) < 0:
        raise ConfigError(f"--restarts: got {arguments.restarts}, expected 0 or more")
    respawn = arguments.respawn or 0
    if respawn < 0:
        raise ConfigError(f"--respawn: got {respawn}, expected 0 or more")
    check_container(arguments)
    _check_alone()
    given = _hosts(arguments)
    allocation = None if given else detect_allocation(os.environ)
    is_in_job = allocation is not None
    hosts = given or allocation or ()
    layout = lay_out(config, wanted(arguments), hosts, len(os.sched_getaffinity(0)), are_allocated=is_in_job)
    config.strategy.check_num_workers(layout.num_workers)
    is_single = config.strategy.is_single
    options = _options(arguments, is_in_job=is_in_job, is_single=is_single)
    if arguments.container is not None:
        options = _contained(options, config, arguments, has_gpus=any(place.gpus for place in layout.places))
    rank_arguments = train_arguments(arguments)
    if respawn:
        _check_respawn(config, options)
        if not layout.is_local:  # new workers reach the store beside those of other hosts
            overrides = (*rank_arguments.overrides, "strategy.joins_from=network")
            rank_arguments = dataclasses.replace(rank_arguments, overrides=overrides)
    if arguments.dry_run:
        return _show(config, layout, launch_command(config, rank_arguments, layout, options))
    if layout.is_local and arguments.container is None:  # the torch of an image may see other GPUs
        _check_devices(config, layout, wanted(arguments).gpus)
    if arguments.program is None:
        _check_start(config, arguments, is_here=layout.is_local or is_in_job)
    elif config.output != UNKNOWN_OUTPUT and layout.is_local:
        RunFolder(config.output).check_place()
    if options.mpi == "openmpi" and options.launcher in ("mpirun", "horovodrun-mpi") and not is_single:
        check_home(os.environ)
    stop_signal = signal.SIGUSR1 if options.launcher in ("mpirun", "srun") and not is_single else None
    status_tells = options.mpi == "openmpi" and options.launcher == "mpirun"
    # Of a script nobody knows what its other ranks do when rank 0 has ended.
    has_desertion = status_tells and not is_single and not layout.is_local and arguments.program is None
    with (
        _respawning(config, respawn),
        _keeping(config) as keeper,
        LaunchedRun(config, is_here=layout.is_local and arguments.container is None) as launched_run,
    ):

        def start(begin: Begin) -> LaunchOutcome:
            ranks = dataclasses.replace(rank_arguments, begin=begin, is_launched=True)
            command = launch_command(config, ranks, layout, options)
            desertion = Desertion(config.strategy.stop_timeout_seconds) if has_desertion else None
            return start_once(launched_run, command, stop_signal, status_tells, keeper, desertion)

        return start_until_done(launched_run, start, rank_arguments.begin, keeper, arguments.restarts)


def _show(config: RunConfig, layout: RankLayout, command: Command) -> int:
    """Print the ranks, the keys without effect and the command; return the exit status."""
    from hvd_async.config import keys_without_effect
    from hvd_async.launcher import explain, plan_ranks

    for line in [*explain(layout, plan_ranks(config, layout)), *keys_without_effect(config)]:
        print(f"# {line}")
    print(command.shell_text())
    return 0


def _check_respawn(config: RunConfig, options: LaunchOptions) -> None:
    """Raise `ConfigError` if no worker of `config` would be replaced."""
    from hvd_async.config import ScriptConfig

    if not config.strategy.is_async or config.strategy.on_worker_failure == "stop":
        raise ConfigError(
            "--respawn: expected strategy.kind: async with on_worker_failure: continue; others end with a worker"
        )
    if config.push.node_sum:
        raise ConfigError("--respawn: got push.node_sum: true, expected false: such a run takes no workers later")
    if isinstance(config.task, ScriptConfig):
        raise ConfigError("--respawn: got a program, expected the configuration of a task, not a loop of its own")
    if not options.outlives:
        raise ConfigError(
            "--respawn: expected Open MPI 5 and --launcher mpirun, whose other ranks live on when a worker dies"
        )


def _keeping(config: RunConfig) -> contextlib.AbstractContextManager[StoreKeeper | None]:
    """Return a context manager that keeps the store's memory, so that nothing is lost when its process dies."""
    if not config.strategy.is_async or not config.store.recoverable:
        return contextlib.nullcontext()
    from hvd_async.cli.holding import StoreKeeper

    return StoreKeeper()


def _respawning(config: RunConfig, limit: int) -> contextlib.AbstractContextManager[object]:
    """Return a context manager that replaces workers which die, up to `limit` times."""
    from hvd_async.config import FactoryConfig
    from hvd_async.runs.folder import RunFolder

    if not limit:
        return contextlib.nullcontext()
    from hvd_async.cli.respawn import Respawner

    trust = ("--trust-task",) if isinstance(config.task, FactoryConfig) else ()  # the run was started with its code
    return Respawner(RunFolder(config.output), limit, trust)


def _check_start(config: RunConfig, arguments: argparse.Namespace, *, is_here: bool) -> None:
    """Raise, before ranks take seconds to start, what they would raise about the folder and, if they run here, the text."""
    from hvd_async.runs.folder import RunFolder
    from hvd_async.tasks.registry import check_data

    folder = RunFolder(config.output)
    if arguments.auto_resume:
        folder.how_to_begin(config)
    elif arguments.resume:
        folder.check_same(config)
    elif not arguments.overwrite:
        folder.check_vacant()
    if is_here:
        if config.strategy.kind == "horovod":
            require("horovod")
        check_data(config)


def _check_devices(config: RunConfig, layout: RankLayout, asked: int | None) -> None:
    """Raise `SetupError` if this machine has fewer GPUs than `asked`, so that ranks would train on the CPU or share GPUs, or
    than the ranks of `layout` need, all of which run here."""
    from hvd_async.cluster.topology import count_gpus
    from hvd_async.config import ScriptConfig
    from hvd_async.launcher import plan_ranks

    # A script may choose another device itself.
    devices = () if isinstance(config.task, ScriptConfig) else (config.training.device, config.store.device)
    needs_gpus = any(device.startswith("cuda") for device in devices)
    if asked is None and not needs_gpus:
        return
    found = count_gpus()
    if asked is not None and asked > found:
        raise SetupError(
            f"--gpus-per-node: got {asked}, but torch finds {found} GPUs on this machine, where the ranks would run; expected at"
            f" most {found}; `hvd-async doctor` describes the machine"
            if found
            else f"--gpus-per-node: got {asked}, but torch finds no GPU on this machine, where the ranks would run; for workers"
            f" on the CPU, use --workers {asked} instead"
        )
    if needs_gpus:
        places = (dataclasses.replace(place, gpus=found if place.gpus is None else place.gpus) for place in layout.places)
        plan_ranks(config, dataclasses.replace(layout, places=tuple(places)))


def _check_alone() -> None:
    """Raise `SetupError` in one of several processes, each of which would start a run of its own in the same folder."""
    from hvd_async.cluster.environment import read_environment

    launched = read_environment(os.environ)
    if launched is not None and launched.size > 1:
        raise SetupError(
            f"launch: got {launched.size} processes of {launched.launcher.name}, expected one, which starts the ranks itself;"
            " leave out the other launcher, or have it start `hvd-async train`"
        )


def _options(arguments: argparse.Namespace, *, is_in_job: bool, is_single: bool) -> LaunchOptions:
    from hvd_async.cluster.batch_system import variables_to_unset
    from hvd_async.cluster.mpi_family import detect_mpi, outlives_ranks, version_of
    from hvd_async.cluster.slurm import detect_pmi, read_job
    from hvd_async.launcher import LaunchOptions, variables_to_forward

    bin_folder = pathlib.Path(sys.executable).parent  # MPI and Horovod of this environment, even if it is not activated
    found = {name: str(bin_folder / name) if (bin_folder / name).exists() else name for name in ("mpirun", "horovodrun")}
    launcher: LauncherName = arguments.launcher or "mpirun"
    if launcher == "srun" and (not is_in_job or read_job(os.environ) is None):
        raise SetupError(
            "--launcher srun: expected to run in a Slurm job, without --hosts; write a batch script with --slurm, or get"
            " nodes with salloc first"
        )
    if arguments.pmi is not None and launcher != "srun":
        raise SetupError(f"--pmi: got --launcher {launcher}, expected srun")
    mpi = arguments.mpi or ("openmpi" if is_single else detect_mpi(found["mpirun"]))
    outlives = launcher == "mpirun" and mpi == "openmpi" and not is_single
    if outlives and arguments.mpi is None:
        outlives = outlives_ranks(version_of(found["mpirun"]))
    return LaunchOptions(
        mpi=mpi,
        outlives=outlives,
        launcher=launcher,
        pmi=arguments.pmi or (detect_pmi(mpi) if launcher == "srun" and not is_single else ""),
        mpirun=found["mpirun"],
        horovodrun=found["horovodrun"],
        python_flags=interpreter.flags(),
        as_root=os.geteuid() == 0,
        forward=variables_to_forward(os.environ, arguments.forward),
        extra=tuple(arguments.extra),
        unset=variables_to_unset(os.environ, starts_ranks=launcher == "srun") if is_in_job else (),
        path=_path_with(bin_folder) if launcher.startswith("horovodrun") or mpi == "intel" else None,
    )


def _contained(options: LaunchOptions, config: RunConfig, arguments: argparse.Namespace, *, has_gpus: bool) -> LaunchOptions:
    """Return `options` for ranks in the container of --container."""
    from hvd_async.launcher import find_container, folders_to_bind

    binds = (*folders_to_bind(config, arguments.config or "", os.environ), *arguments.bind)
    has_gpus = has_gpus or config.training.device.startswith("cuda")
    # Flags of this Python may be unknown to the image's. -s: packages of the image, not those in ~/.local of the host.
    return dataclasses.replace(
        options,
        python="python",
        python_flags=("-s",),
        container=find_container(arguments.container, binds, has_gpus=has_gpus, is_shown=arguments.dry_run),
    )


def _path_with(folder: pathlib.Path) -> str | None:
    """Return PATH with `folder` added, or None if PATH contains it. There horovodrun finds mpirun, Intel's mpirun its Hydra."""
    paths = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return None if str(folder) in paths else os.pathsep.join([str(folder), *paths])


def _hosts(arguments: argparse.Namespace) -> tuple[Host, ...]:
    from hvd_async.cluster.hosts import parse_hosts
    from hvd_async.tasks.translation.text import read_bytes, split_lines

    if arguments.hostfile is not None:
        text = "\n".join(split_lines(read_bytes(arguments.hostfile), arguments.hostfile))
        return parse_hosts(text, str(arguments.hostfile))
    return () if arguments.hosts is None else parse_hosts(arguments.hosts, "--hosts")
