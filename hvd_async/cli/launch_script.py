"""`hvd-async launch --slurm`: the job of a batch script, and the ranks and arguments that both it and `launch` ask for."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from hvd_async.cli.arguments import is_given, refuse
from hvd_async.cli.batch_arguments import conda_of, container_of, parse_gpus, resources, submit
from hvd_async.cli.launch_program import find_program
from hvd_async.errors import ConfigError

if TYPE_CHECKING:
    from hvd_async.config import RunConfig
    from hvd_async.launcher import Begin, TrainArguments, Wanted
    from hvd_async.launcher.batch_script import Resources


def wanted(arguments: argparse.Namespace) -> Wanted:
    """Return the ranks that are asked for. Raises `ConfigError`."""
    from hvd_async.launcher import Wanted

    gpu_type, gpus = parse_gpus(arguments.gpus_per_node)
    if gpu_type and not arguments.slurm:
        raise ConfigError(
            f"--gpus-per-node: got the type {gpu_type} without --slurm, where it has no effect; remove the type"
        )
    return Wanted(arguments.workers, arguments.workers_per_node, gpus, arguments.store_apart)


def train_arguments(arguments: argparse.Namespace) -> TrainArguments:
    """Return the arguments of every rank."""
    from hvd_async.launcher import TrainArguments

    # horovodrun puts the rank's number before everything that it takes for a line.
    has_lines = arguments.dry_run or str(arguments.launcher).startswith("horovodrun")
    progress = "bar" if sys.stdout.isatty() and not has_lines else "auto"
    own_program = () if arguments.program is None else find_program(arguments.program, is_here=arguments.container is None)
    return TrainArguments(
        arguments.config or "", tuple(arguments.overrides), _begin(arguments), progress, own_program=own_program
    )


def check_container(arguments: argparse.Namespace) -> None:
    """Raise `ConfigError` for flags that do not go together with --container, or need it."""
    if arguments.bind and arguments.container is None:
        raise ConfigError(f"--bind {arguments.bind[0]} has no effect without --container; add --container or remove it")
    if arguments.container is not None and arguments.respawn:
        raise ConfigError("--respawn: got --container, expected none: a new worker would start outside of the image")


def _begin(arguments: argparse.Namespace) -> Begin:
    begin: Begin
    for begin in ("resume", "overwrite", "auto-resume"):
        if getattr(arguments, begin.replace("-", "_")):
            return begin
    return ""


def write_script(config: RunConfig, arguments: argparse.Namespace) -> int:
    """Print the script or submit it, and return the exit status. Raises `ConfigError` for what the job would refuse."""
    from hvd_async.launcher.batch_script import ScriptJob, render

    is_single = config.strategy.is_single
    asked = resources(arguments, **({"nodes": 1, "workers_per_node": 1} if is_single else {}))
    _check_ranks(config, arguments, asked)
    if arguments.slurm == "train-requeue":
        refuse(arguments, ("resume", "overwrite"), "--slurm train-requeue, which has --auto-resume")
        arguments.auto_resume = False  # it is in the script
    if arguments.slurm != "train":
        refuse(arguments, ("launcher",), f"--slurm {arguments.slurm}")
    container, binds = container_of(arguments)
    check_container(arguments)
    if is_given(arguments, "respawn") and arguments.launcher != "mpirun":
        raise ConfigError("--respawn: expected --launcher mpirun: srun ends all ranks when one dies")
    # The configuration of a script of the user is one of the options; that of a run can be replaced on sbatch's command line.
    options = list(train_arguments(arguments).words()[arguments.program is None or arguments.config is None :])
    for flag in ("workers", "mpi", "pmi", "restarts", "respawn"):
        if is_given(arguments, flag):
            options += [f"--{flag}", str(getattr(arguments, flag))]
    if container is not None:
        options += ["--container", container, *(word for bind in binds for word in ("--bind", bind))]
    for flag in ("forward", "extra"):
        options += [f"--{flag}={value}" for value in getattr(arguments, flag)]
    job = ScriptJob(
        script=arguments.slurm,
        target=arguments.config or "",
        options=tuple(options),
        environment=sys.prefix,
        conda=conda_of(arguments),
        name=arguments.job_name or "hvd-async",
        launcher=arguments.launcher or "srun",
        store_nodes=config.store.shards,
        path="FILE",
        program=tuple(arguments.program or ()),
    )
    text = render(job, asked)
    if not arguments.submit or arguments.dry_run:
        print(text, end="")
        return 0
    return submit(["sbatch"], text)


def _check_ranks(config: RunConfig, arguments: argparse.Namespace, asked: Resources) -> None:
    """Raise now what `launch` would raise later, in the job that the script asks for."""
    from hvd_async.cluster.hosts import Host
    from hvd_async.launcher import lay_out, plan_ranks

    asked.check()
    is_apart = arguments.slurm == "heterogeneous"
    cores = asked.workers_per_node * asked.cpus_per_worker
    hosts = [Host(f"store{k}", 1, asked.cpus_per_worker, 0, 0) for k in range(config.store.shards if is_apart else 0)]
    gpus = asked.gpus_per_node or None
    hosts += [Host(f"node{k}", asked.workers_per_node, cores, gpus, int(is_apart)) for k in range(asked.nodes)]
    ranks = dataclasses.replace(wanted(arguments), per_node=None, store_apart=is_apart)
    plan_ranks(config, lay_out(config, ranks, hosts, cores, are_allocated=True))
