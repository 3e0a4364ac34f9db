"""`hvd-async launch`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import signal
import sys
import time
from typing import TYPE_CHECKING

from hvd_async.cli.arguments import add_config, refuse, verb
from hvd_async.cli.batch import ONLY_OF_SCRIPTS, add_resources, resources, submit
from hvd_async.errors import SetupError

if TYPE_CHECKING:
    from hvd_async.config import RunConfig
    from hvd_async.launcher import Allocation, Begin, Host, LaunchOptions, Starter, TrainArguments

# What a batch script has no use for.
_OF_COMMANDS = ("hosts", "hostfile", "store_apart")


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add it to the command line."""
    parser = verb(verbs, "launch", "start a run with mpirun, horovodrun or srun, or write a batch script for Slurm", _launch)
    add_config(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would be started, or submitted, and do nothing")
    ranks = parser.add_argument_group("ranks", "In a Slurm job, by default, a worker for each of its tasks.")
    ranks.add_argument("-w", "--workers", type=int, metavar="N", help="ranks that train (default 2; 1 for strategy single)")
    ranks.add_argument("--workers-per-node", type=int, metavar="N", help="the same for each host")
    ranks.add_argument("--gpus-per-node", type=int, metavar="N", help="GPUs of each host; by default a worker for each")
    ranks.add_argument(
        "--store-apart", action="store_true", help="the first component of a heterogeneous Slurm job is for the store alone"
    )
    starting = parser.add_argument_group("starting")
    starting.add_argument(
        "--starter",
        choices=("mpirun", "srun", "horovodrun-mpi", "horovodrun-gloo"),
        help="what starts the ranks (default mpirun; srun in a batch script)",
    )
    starting.add_argument("--mpi", choices=("openmpi", "mpich", "intel"), help="family of the MPI; default: ask mpirun")
    starting.add_argument("--pmi", metavar="NAME", help="for srun --mpi; default: what Slurm has for this MPI")
    where = starting.add_mutually_exclusive_group()
    where.add_argument(
        "--hosts",
        metavar="HOST:SLOTS,...",
        help="hosts and ranks on each, the store's first; default: this one, or those of the job",
    )
    where.add_argument("--hostfile", type=pathlib.Path, metavar="FILE", help="the same, a host a line")
    starting.add_argument(
        "--forward",
        action="append",
        default=[],
        metavar="NAME",
        help="a variable that ranks on other hosts are to have; may repeat",
    )
    starting.add_argument(
        "--extra", action="append", default=[], metavar="ARG", help="passed to the starter as it is; may repeat"
    )
    batch = parser.add_argument_group("batch scripts")
    batch.add_argument(
        "--slurm",
        choices=("train", "train-requeue", "heterogeneous"),
        nargs="?",
        const="train",
        help="print a batch script (default train), as those in slurm/",
    )
    add_resources(batch)


def _launch(arguments: argparse.Namespace) -> int:
    from hvd_async.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    if arguments.slurm:
        refuse(arguments, _OF_COMMANDS, "--slurm")
        return _write_script(arguments)
    refuse(arguments, ONLY_OF_SCRIPTS, "no --slurm")
    return _run(config, arguments)


def _run(config: RunConfig, arguments: argparse.Namespace) -> int:
    from hvd_async.launcher import Wanted, detect_allocation, explain, launch_command, lay_out, plan_ranks, run_command

    given = _hosts(arguments)
    allocation = None if given else detect_allocation(os.environ)
    hosts = given or (allocation.hosts if allocation else ())
    per_node = arguments.workers_per_node
    if arguments.gpus_per_node is not None:
        hosts = tuple(dataclasses.replace(host, gpus=arguments.gpus_per_node) for host in hosts)
        per_node = per_node or (arguments.gpus_per_node if arguments.workers is None else None)
    wanted = Wanted(arguments.workers, per_node, arguments.store_apart)
    layout = lay_out(config, wanted, hosts, len(os.sched_getaffinity(0)), are_allocated=allocation is not None)
    is_single = config.strategy.kind == "single"
    options = _options(arguments, allocation, is_single=is_single)
    command = launch_command(config, _train_arguments(arguments), layout, options)
    if arguments.dry_run:
        for line in explain(layout, plan_ranks(config, layout)):
            print(f"# {line}")
    print(command.shell_text(), flush=True)
    if arguments.dry_run:
        return 0
    began = time.monotonic()
    passes_on = options.starter in ("mpirun", "srun") and not is_single
    status = run_command(command, os.environ, signal.SIGUSR1 if passes_on else None)
    print(_ending(status, time.monotonic() - began), flush=True)
    return status


def _ending(status: int, seconds: float) -> str:
    """The last line of a log."""
    minutes, rest = divmod(round(seconds), 60)
    clock = f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
    if status == 0:
        return f"launch: done after {clock}"
    try:
        return f"launch: stopped by {signal.Signals(status - 128).name} after {clock}, exit status {status}"
    except ValueError:
        return f"launch: failed after {clock}, exit status {status}"


def _options(arguments: argparse.Namespace, allocation: Allocation | None, *, is_single: bool) -> LaunchOptions:
    from hvd_async.launcher import LaunchOptions, detect_mpi, detect_pmi, variables_to_forward, variables_to_unset

    bin_folder = pathlib.Path(sys.executable).parent  # the MPI and Horovod of this environment, even if it is not active
    found = {name: str(bin_folder / name) if (bin_folder / name).exists() else name for name in ("mpirun", "horovodrun")}
    starter: Starter = arguments.starter or "mpirun"
    if starter == "srun" and allocation is None:
        raise SetupError(
            "--starter srun: expected to be in a Slurm job, with no --hosts; write a batch script with --slurm, or get nodes with"
            " salloc first"
        )
    if arguments.pmi is not None and starter != "srun":
        raise SetupError(f"--pmi: got it with --starter {starter}, expected srun")
    mpi = arguments.mpi or ("openmpi" if is_single else detect_mpi(found["mpirun"]))
    return LaunchOptions(
        mpi=mpi,
        starter=starter,
        pmi=arguments.pmi or (detect_pmi(mpi) if starter == "srun" and not is_single else ""),
        mpirun=found["mpirun"],
        horovodrun=found["horovodrun"],
        as_root=os.geteuid() == 0,
        forward=variables_to_forward(os.environ, arguments.forward),
        extra=tuple(arguments.extra),
        unset=variables_to_unset(os.environ, starter) if allocation else (),
        path=_path_with(bin_folder) if starter.startswith("horovodrun") or mpi == "intel" else None,
    )


def _path_with(folder: pathlib.Path) -> str | None:
    """PATH with `folder` in it, where it is not: horovodrun looks for mpirun there, and Intel's mpirun for its other half."""
    paths = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return None if str(folder) in paths else os.pathsep.join([str(folder), *paths])


def _train_arguments(arguments: argparse.Namespace) -> TrainArguments:
    from hvd_async.launcher import TrainArguments

    progress = "bar" if sys.stdout.isatty() and not arguments.dry_run else "auto"
    return TrainArguments(arguments.config, tuple(arguments.overrides), _begin(arguments), progress)


def _begin(arguments: argparse.Namespace) -> Begin:
    begin: Begin
    for begin in ("resume", "overwrite", "auto-resume"):
        if getattr(arguments, begin.replace("-", "_")):
            return begin
    return ""


def _hosts(arguments: argparse.Namespace) -> tuple[Host, ...]:
    from hvd_async.launcher import parse_hosts
    from hvd_async.nmt.text import read_bytes, split_lines

    if arguments.hostfile is not None:
        text = "\n".join(split_lines(read_bytes(arguments.hostfile), arguments.hostfile))
        return parse_hosts(text, str(arguments.hostfile))
    return parse_hosts(arguments.hosts, "--hosts") if arguments.hosts else ()


def _write_script(arguments: argparse.Namespace) -> int:
    from hvd_async.launcher.batch import Job, render

    options = list(_train_arguments(arguments).words()[1:])
    for flag in ("workers", "mpi", "pmi"):
        if getattr(arguments, flag) is not None:
            options += [f"--{flag}", str(getattr(arguments, flag))]
    for flag in ("forward", "extra"):
        options += [f"--{flag}={value}" for value in getattr(arguments, flag)]
    if arguments.slurm != "train":
        refuse(arguments, ("starter",), f"--slurm {arguments.slurm}")
    job = Job(
        script=arguments.slurm,
        target=arguments.config,
        options=tuple(options),
        environment=sys.prefix,
        name=arguments.job_name or "hvd-async",
        starter=arguments.starter or "srun",
        path="FILE",
    )
    text = render(job, resources(arguments))
    if not arguments.submit or arguments.dry_run:
        print(text, end="")
        return 0
    return submit(["sbatch"], text)
