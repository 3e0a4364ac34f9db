"""`hvd-async train` and `launch`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import signal
import sys
from typing import TYPE_CHECKING

from hvd_async.cli.arguments import (
    add_config,
    print_summary,
    verb,
)

if TYPE_CHECKING:
    from hvd_async.launcher import Host


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add them to the command line."""
    _add_train(verb(verbs, "train", "train one configuration, on all ranks that the launcher started", _train))
    _add_launch(verb(verbs, "launch", "build the mpirun or horovodrun command for a configuration, and run it", _launch))


def _add_train(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--progress",
        choices=("auto", "bar", "lines"),
        default="auto",
        help="auto (default): a bar on a terminal, but lines under a launcher, which may show its ranks a terminal of its own",
    )


def _train(arguments: argparse.Namespace) -> int:
    from hvd_async.config import load_config

    config = load_config(arguments.config, arguments.overrides)

    from hvd_async.environment import read_environment
    from hvd_async.nmt import TranslationTask, prepare
    from hvd_async.run import TrainOptions, train

    is_live = arguments.progress == "bar"
    if arguments.progress == "auto":
        is_live = sys.stdout.isatty() and read_environment(os.environ) is None
    options = TrainOptions(arguments.resume, arguments.overwrite, is_live, arguments.auto_resume)
    summary = train(config, lambda config: TranslationTask(config, prepare(config)), options)
    if summary:
        print_summary(summary, config.output)
    return 0


def _add_launch(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("-w", "--workers", type=int, metavar="N", help="ranks that train (default 2; 1 for strategy single)")
    parser.add_argument("--dry-run", action="store_true", help="print the command line and do nothing")
    parser.add_argument("--mpi", choices=("openmpi", "mpich"), help="family of the MPI; default: ask mpirun")
    parser.add_argument(
        "--starter",
        choices=("mpirun", "horovodrun-mpi", "horovodrun-gloo"),
        default="mpirun",
        help="what starts the ranks (default mpirun)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--hosts", metavar="HOST:SLOTS,...", help="hosts and ranks on each, the store's first; default: this one"
    )
    where.add_argument("--hostfile", type=pathlib.Path, metavar="FILE", help="the same, a host a line")
    parser.add_argument(
        "--extra", action="append", default=[], metavar="ARG", help="passed to the starter as it is; may repeat"
    )


def _launch(arguments: argparse.Namespace) -> int:
    from hvd_async.config import load_config
    from hvd_async.launcher import LaunchOptions, TrainArguments, detect_mpi, launch_command, run_command

    config = load_config(arguments.config, arguments.overrides)
    bin_folder = pathlib.Path(sys.executable).parent  # the MPI and Horovod of this environment, even if it is not active
    found = {name: str(bin_folder / name) if (bin_folder / name).exists() else name for name in ("mpirun", "horovodrun")}
    is_single = config.strategy.kind == "single"
    options = LaunchOptions(
        mpi=arguments.mpi or ("openmpi" if is_single else detect_mpi(found["mpirun"])),
        starter=arguments.starter,
        mpirun=found["mpirun"],
        horovodrun=found["horovodrun"],
        hosts=_hosts(arguments),
        num_cores=len(os.sched_getaffinity(0)),
        as_root=os.geteuid() == 0,
        extra=tuple(arguments.extra),
    )
    progress = "bar" if sys.stdout.isatty() and not arguments.dry_run else "auto"
    train = TrainArguments(arguments.config, tuple(arguments.overrides), arguments.resume, arguments.overwrite, progress)
    workers = arguments.workers if arguments.workers is not None else 1 if is_single else 2
    command = launch_command(config, train, workers, options)
    paths = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if arguments.starter != "mpirun" and str(bin_folder) not in paths:  # horovodrun looks for mpirun there
        path = os.pathsep.join([str(bin_folder), *paths])
        command = dataclasses.replace(command, environment={**command.environment, "PATH": path})
    print(command.shell_text(), flush=True)
    if arguments.dry_run:
        return 0
    return run_command(command, os.environ, signal.SIGUSR1 if arguments.starter == "mpirun" and not is_single else None)


def _hosts(arguments: argparse.Namespace) -> tuple[Host, ...]:
    from hvd_async.launcher import parse_hosts
    from hvd_async.nmt.text import read_bytes, split_lines

    if arguments.hostfile is not None:
        text = "\n".join(split_lines(read_bytes(arguments.hostfile), arguments.hostfile))
        return parse_hosts(text, str(arguments.hostfile))
    return parse_hosts(arguments.hosts, "--hosts") if arguments.hosts else ()
