"""What `launch` and `compare` share where they write batch scripts."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hvd_async.cli.arguments import is_given
from hvd_async.errors import ConfigError, SetupError

if TYPE_CHECKING:
    from hvd_async.launcher.batch import Resources

# Of `add_resources` all of it.
_OF_SCRIPTS = ("nodes", "cpus_per_worker", "time", "job_name", "sbatch", "submit")


def add_resources(group: argparse._ArgumentGroup) -> None:
    """What a batch script asks of Slurm."""
    group.add_argument("--submit", action="store_true", help="submit it with sbatch")
    group.add_argument("--nodes", type=int, metavar="N", help="nodes to ask for (default: launch 2, compare 1)")
    group.add_argument("--cpus-per-worker", type=int, metavar="N", help="cores of each worker (default 4)")
    group.add_argument("--time", metavar="TIME", help="limit, as sbatch has it (default 24:00:00)")
    group.add_argument("--job-name", metavar="NAME", help="default hvd-async")
    group.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="a further option, such as --sbatch=--partition=gpu, which overrides the script's own; may repeat",
    )


def check_no_script(arguments: argparse.Namespace, *more: str) -> None:
    """Raises `ConfigError` for arguments of batch scripts, and for `more`, where none is written."""
    for name in (*_OF_SCRIPTS, *more):
        if is_given(arguments, name):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag}: got it without --slurm, expected both; it is for a batch script")


def resources(arguments: argparse.Namespace, **defaults: int) -> Resources:
    """What is asked of Slurm, from arguments; `defaults` of fields, where they are not those of `Resources`."""
    from hvd_async.launcher.batch import Resources

    gpus = arguments.gpus_per_node
    if gpus is not None and gpus < 1:
        raise ConfigError(f"--gpus-per-node: got {gpus}, expected 1 or more")
    given = {
        "nodes": arguments.nodes,
        "workers_per_node": arguments.workers_per_node or gpus,
        "cpus_per_worker": arguments.cpus_per_worker,
        "gpus_per_node": gpus,
        "time": arguments.time,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return Resources(**{**defaults, **given}, more=tuple(arguments.sbatch))


def submit(argv: Sequence[str], text: str = "") -> int:
    """Run a command that submits, with `text` as its input: its exit status. Raises `SetupError` where it is not there."""
    try:
        return subprocess.run(argv, input=text, encoding="utf-8", check=False).returncode
    except OSError as error:
        raise SetupError(
            f"{argv[0]}: cannot be started: {error.strerror}; --submit needs a machine with Slurm's commands"
        ) from None
