"""Arguments and steps that `launch` and `compare` share for batch scripts."""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shlex
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hvd_async.cli.arguments import is_given
from hvd_async.errors import ConfigError, SetupError

if TYPE_CHECKING:
    from hvd_async.launcher.batch_dialect import Dialect
    from hvd_async.launcher.batch_script import Resources

# All arguments of `add_resources`.
_OF_SCRIPTS = (
    *("nodes", "cpus_per_worker", "time", "job_name", "account", "queue", "sbatch", "qsub", "bsub"),
    *("setup", "conda", "site", "submit"),
)
# Commands that submit scripts, by the flag for the script; here, so that `--help` need not load the module that knows them.
SUBMIT_COMMANDS = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub"}


def add_resources(group: argparse._ArgumentGroup, systems: Sequence[str] = tuple(SUBMIT_COMMANDS)) -> None:
    """Add the resources that a script asks of one of the batch `systems`."""
    commands = [SUBMIT_COMMANDS[system] for system in systems]
    group.add_argument("--submit", action="store_true", help=f"submit the script with {' or '.join(commands)}")
    group.add_argument(
        "--nodes",
        type=int,
        metavar="N",
        help="nodes to ask for (default: launch 2, or what --workers need, 4 on each; compare 1)",
    )
    group.add_argument("--cpus-per-worker", type=int, metavar="N", help="cores of each worker (default 4)")
    group.add_argument("--time", metavar="TIME", help="time limit, in sbatch's format (default 24:00:00)")
    group.add_argument("--job-name", metavar="NAME", help="default hvd-async")
    group.add_argument("--account", metavar="NAME", help="account or project to which the job is charged")
    group.add_argument("--queue", "--partition", metavar="NAME", help="queue of PBS and LSF, partition of Slurm")
    for command, example in (("sbatch", "--qos=high"), ("qsub", "-W umask=022"), ("bsub", "-sla gold")):
        if command not in commands:
            group.set_defaults(**{command: []})
            continue
        group.add_argument(
            f"--{command}",
            action="append",
            default=[],
            metavar="OPTION",
            help=f"a further option, such as '--{command}={example}', after the script's own; may be repeated",
        )
    group.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="a line of shell before anything is started, such as 'module load cuda/12.4'; may be repeated",
    )
    group.add_argument(
        "--conda",
        metavar="ENV",
        help="environment of conda, by name or path, in which the job has hvd_async (default: this environment, by its path)",
    )
    group.add_argument(
        "--site",
        type=pathlib.Path,
        metavar="FILE",
        help="account, partition, setup and more of a cluster, in YAML (default: hvd_async/site.yaml in ~/.config)",
    )


def check_no_script(arguments: argparse.Namespace, *more: str, systems: str = "--slurm") -> None:
    """Refuse arguments of batch scripts, and `more`, where no script is written. `systems`: the flags that write one.

    Raises `ConfigError`.
    """
    for name in (*_OF_SCRIPTS, *more):
        if is_given(arguments, name):
            flag = name.replace("_", "-")
            raise ConfigError(
                f"--{flag} has no effect without {systems}: it is for batch scripts; add {systems} or remove it"
            )


def parse_gpus(text: str | None) -> tuple[str, int | None]:
    """Return the type of GPU and their number from `a100:4` or `4` (empty type: any). Raises `ConfigError`."""
    if text is None:
        return "", None
    found = re.fullmatch(r"(?:([A-Za-z][\w.-]*):)?(\d{1,6})", text)
    if found is None or int(found[2]) < 1:
        raise ConfigError(f"--gpus-per-node: got {text}, expected 1 or more, with or without a type, such as 4 or a100:4")
    return found[1] or "", int(found[2])


def resources(arguments: argparse.Namespace, dialect: Dialect, **defaults: int) -> Resources:
    """Return the resources to ask of a batch system, from arguments. `defaults`: of fields, where they differ from `Resources`.

    Raises `ConfigError`, also for options of another batch system.
    """
    from hvd_async.launcher.batch_script import Resources
    from hvd_async.launcher.site_file import read_site

    site = read_site(arguments.site, os.environ)
    gpu_type, gpus = parse_gpus(arguments.gpus_per_node)
    given = {
        "nodes": arguments.nodes,
        "workers_per_node": gpus if arguments.workers_per_node is None else arguments.workers_per_node,
        "cpus_per_worker": arguments.cpus_per_worker,
        "gpus_per_node": gpus,
        "time": arguments.time,
    }
    given = {name: value for name, value in given.items() if value is not None}
    for other in SUBMIT_COMMANDS.values():
        if other != dialect.submit and is_given(arguments, other):
            raise ConfigError(
                f"--{other}: got --{dialect.name}, whose further options are those of --{dialect.submit}; use that flag"
            )
    queue = arguments.queue if arguments.queue is not None else site.queue
    if queue is not None and not re.fullmatch(r"[\w.,@+-]+", queue):
        raise ConfigError(f"--queue or --partition: got {queue!r}, expected letters, digits and any of . , @ + - _")
    own = () if queue is None else (dialect.queue.format(queue),)
    return Resources(
        **{**defaults, **given},
        gpu_type=gpu_type,
        # Of two equal options sbatch takes the later.
        more=(*own, *getattr(site, dialect.submit), *getattr(arguments, dialect.submit)),
        account=arguments.account or site.account or "",
        setup=(*site.setup, *arguments.setup),
    )


def several_asked(arguments: argparse.Namespace, asked: Resources) -> tuple[str, int] | None:
    """Return the flag by which `asked` has room for more than one process, and its number; None if it has not."""
    if asked.nodes != 1:
        return "--nodes", asked.nodes
    if asked.workers_per_node != 1:
        return f"--{'gpus' if arguments.workers_per_node is None else 'workers'}-per-node", asked.workers_per_node
    return None


def conda_of(arguments: argparse.Namespace) -> str:
    """Return the environment of conda for a script, from the arguments or else the site file; empty: none."""
    from hvd_async.launcher.site_file import read_site

    given: str | None = arguments.conda
    return given if given is not None else read_site(arguments.site, os.environ).conda or ""


def container_of(arguments: argparse.Namespace) -> tuple[str | None, tuple[str, ...]]:
    """Return the image for a script and the folders to bind, from the arguments and the site file. Raises `ConfigError`."""
    from hvd_async.launcher.container import check_bind
    from hvd_async.launcher.site_file import read_site

    site = read_site(arguments.site, os.environ)
    for bind in arguments.bind:
        check_bind(bind)
    image = arguments.container if arguments.container is not None else site.container
    return image, (*site.binds, *arguments.bind)


def submit(argv: Sequence[str], text: str = "", *, title: str = "Slurm") -> None:
    """Run a command that submits, with `text` as input. `title`: the batch system, for messages.

    Raises `SetupError` if the command is missing or fails.
    """
    try:
        status = subprocess.run(argv, input=text, encoding="utf-8", check=False).returncode
    except OSError as error:
        raise SetupError(
            f"{argv[0]}: cannot be started: {error.strerror}; --submit needs a machine with {title}'s commands"
        ) from None
    if status != 0:
        raise SetupError(
            f"{shlex.join(argv)}: got exit status {status}, expected 0; its messages above say why, and which jobs are queued"
        )
