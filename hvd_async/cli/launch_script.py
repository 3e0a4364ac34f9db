"""`hvd-async launch --slurm`, `--pbs`, `--lsf`: the job of a script, and the ranks and arguments that `launch` asks for, too."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from hvd_async.cli.arguments import is_given, refuse
from hvd_async.cli.batch_arguments import conda_of, container_of, parse_gpus, resources, several_asked, submit
from hvd_async.cli.launch_program import find_program
from hvd_async.errors import ConfigError

if TYPE_CHECKING:
    from hvd_async.config import RunConfig
    from hvd_async.launcher import Begin, TrainArguments, Wanted
    from hvd_async.launcher.batch_dialect import Dialect, Script
    from hvd_async.launcher.batch_script import Resources


def script_asked(arguments: argparse.Namespace) -> tuple[Dialect, Script] | None:
    """Return the batch system and the script that are asked for, or None: no script is to be written."""
    from hvd_async.launcher.batch_dialect import DIALECTS

    found = ((dialect, getattr(arguments, name)) for name, dialect in DIALECTS.items())
    return next(((dialect, script) for dialect, script in found if script), None)


def wanted(arguments: argparse.Namespace) -> Wanted:
    """Return the ranks that are asked for. Raises `ConfigError`."""
    from hvd_async.launcher import Wanted

    gpu_type, gpus = parse_gpus(arguments.gpus_per_node)
    if gpu_type and script_asked(arguments) is None:
        raise ConfigError(
            f"--gpus-per-node: got the type {gpu_type} without --slurm or --lsf, where it has no effect; remove the type"
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


def check_container(arguments: argparse.Namespace, origin: str = "--container") -> None:
    """Raise `ConfigError` for flags that do not go together with a container, or need it. `origin`: what names the container."""
    if arguments.bind and arguments.container is None:
        raise ConfigError(f"--bind {arguments.bind[0]} has no effect without --container; add --container or remove it")
    if arguments.container is not None and arguments.respawn:
        raise ConfigError(f"--respawn: got {origin}, expected none: a new worker would start outside of the image")


def _begin(arguments: argparse.Namespace) -> Begin:
    begin: Begin
    for begin in ("resume", "overwrite", "auto-resume"):
        if getattr(arguments, begin.replace("-", "_")):
            return begin
    return ""


def write_script(config: RunConfig, arguments: argparse.Namespace, dialect: Dialect, script: Script) -> int:
    """Print the script or submit it, and return the exit status. Raises `ConfigError` for what the job would refuse."""
    from hvd_async.config import keys_without_effect
    from hvd_async.launcher import check_launcher
    from hvd_async.launcher.batch_script import ScriptJob, render

    origin = "--container" if arguments.container is not None else "a container in the site file"
    # The same checks, and the same look for a program, wherever the image is named.
    arguments.container, binds = container_of(arguments)
    check_container(arguments, origin)
    asked = resources(arguments, dialect, **_places(arguments, 1 if config.strategy.is_single else arguments.workers))
    asked.check(dialect)
    if config.strategy.is_single and (several := several_asked(arguments, asked)) is not None:
        flag, number = several
        raise ConfigError(f"{flag}: got {number}, expected 1 for strategy single, which is one process")
    _check_ranks(config, arguments, asked, is_apart=script == "heterogeneous")
    if script == "train-requeue":
        refuse(arguments, ("resume", "overwrite"), f"--{dialect.name} train-requeue, which has --auto-resume")
        arguments.auto_resume = False  # it is in the script
    launcher = _launcher(arguments, dialect, script)
    check_launcher(launcher, config.strategy)
    if is_given(arguments, "respawn") and launcher != "mpirun":
        raise ConfigError("--respawn: expected --launcher mpirun: srun ends all ranks when one dies")
    # The configuration of a script of the user is one of the options; that of a run can be replaced on sbatch's command line.
    options = list(train_arguments(arguments).words()[arguments.program is None or arguments.config is None :])
    if dialect.name == "lsf" and not is_given(arguments, "workers"):
        options += ["--workers-per-node", str(asked.workers_per_node)]  # its slots are cores
    for flag in ("workers", "mpi", "pmi", "restarts", "respawn"):
        if is_given(arguments, flag):
            options += [f"--{flag}", str(getattr(arguments, flag))]
    if arguments.container is not None:
        options += ["--container", arguments.container, *(word for bind in binds for word in ("--bind", bind))]
    for flag in ("forward", "extra"):
        options += [f"--{flag}={value}" for value in getattr(arguments, flag)]
    job = ScriptJob(
        script=script,
        system=dialect.name,
        target=arguments.config or "",
        options=tuple(options),
        environment=sys.prefix,
        conda=conda_of(arguments),
        name=arguments.job_name or "hvd-async",
        launcher=launcher,
        store_nodes=config.store.shards,
        path="FILE",
        program=tuple(arguments.program or ()),
    )
    text = render(job, asked)
    for line in keys_without_effect(config):
        print(line, file=sys.stderr)  # stdout is the script
    if not arguments.submit or arguments.dry_run:
        print(text, end="")
        return 0
    submit([dialect.submit], text, title=dialect.title)
    return 0


def _places(arguments: argparse.Namespace, workers: int | None) -> dict[str, int]:
    """Return the nodes, and the workers on each, of which `workers` need no more, as far as the arguments leave them open."""
    from hvd_async.launcher.batch_script import Resources

    nodes = arguments.nodes
    per_node = arguments.workers_per_node or parse_gpus(arguments.gpus_per_node)[1]
    if workers is None or workers < 1 or (nodes is not None and nodes < 1):
        return {}
    if nodes is None:
        nodes = -(-workers // (per_node or Resources.workers_per_node))
    return {"nodes": nodes, "workers_per_node": per_node or -(-workers // nodes)}


def _launcher(arguments: argparse.Namespace, dialect: Dialect, script: Script) -> str:
    """Return the launcher that the script calls. Raises `ConfigError` for one that it cannot."""
    if dialect.starts_ranks:
        if script != "train":
            refuse(arguments, ("launcher",), f"--{dialect.name} {script}")
        return arguments.launcher or "srun"
    if arguments.launcher == "srun":
        raise ConfigError(f"--launcher srun: got --{dialect.name}, expected --slurm with it: srun is Slurm's; use mpirun")
    return arguments.launcher or "mpirun"


def _check_ranks(config: RunConfig, arguments: argparse.Namespace, asked: Resources, *, is_apart: bool) -> None:
    """Raise now what `launch` would raise later, in the job that the script asks for."""
    from hvd_async.cluster.hosts import Host
    from hvd_async.launcher import lay_out, plan_ranks

    cores = asked.workers_per_node * asked.cpus_per_worker
    hosts = [Host(f"store{k}", 1, asked.cpus_per_worker, 0, 0) for k in range(config.store.shards if is_apart else 0)]
    gpus = asked.gpus_per_node or None
    hosts += [Host(f"node{k}", asked.workers_per_node, cores, gpus, int(is_apart)) for k in range(asked.nodes)]
    ranks = dataclasses.replace(wanted(arguments), per_node=None, store_apart=is_apart)
    layout = lay_out(config, ranks, hosts, cores, are_allocated=True)
    config.strategy.check_num_workers(layout.num_workers)
    plan_ranks(config, layout)
