"""Arguments and steps that `launch` and `compare` share for batch scripts."""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hvd_async.cli.arguments import is_given
from hvd_async.errors import ConfigError, SetupError

if TYPE_CHECKING:
    from hvd_async.launcher.batch_script import Resources

# All arguments of `add_resources`.
_OF_SCRIPTS = ("nodes", "cpus_per_worker", "time", "job_name", "sbatch", "setup", "conda", "site", "submit")


def add_resources(group: argparse._ArgumentGroup) -> None:
    """Add the resources that a batch script asks of Slurm."""
    group.add_argument("--submit", action="store_true", help="submit the script with sbatch")
    group.add_argument("--nodes", type=int, metavar="N", help="nodes to ask for (default: launch 2, compare 1)")
    group.add_argument("--cpus-per-worker", type=int, metavar="N", help="cores of each worker (default 4)")
    group.add_argument("--time", metavar="TIME", help="time limit, in sbatch's format (default 24:00:00)")
    group.add_argument("--job-name", metavar="NAME", help="default hvd-async")
    group.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="a further option, such as --sbatch=--partition=gpu, which overrides the script's own; may be repeated",
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


def check_no_script(arguments: argparse.Namespace, *more: str) -> None:
    """Refuse arguments of batch scripts, and `more`, where no script is written. Raises `ConfigError`."""
    for name in (*_OF_SCRIPTS, *more):
        if is_given(arguments, name):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} has no effect without --slurm: it is for batch scripts; add --slurm or remove it")


def parse_gpus(text: str | None) -> tuple[str, int | None]:
    """Return the type of GPU and their number from `a100:4` or `4` (empty type: any). Raises `ConfigError`."""
    if text is None:
        return "", None
    found = re.fullmatch(r"(?:([A-Za-z][\w.-]*):)?(\d{1,6})", text)
    if found is None or int(found[2]) < 1:
        raise ConfigError(f"--gpus-per-node: got {text}, expected 1 or more, with or without a type, such as 4 or a100:4")
    return found[1] or "", int(found[2])


def resources(arguments: argparse.Namespace, **defaults: int) -> Resources:
    """Return the resources to ask of Slurm, from arguments. `defaults`: of fields, where they differ from `Resources`."""
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
    partition = () if site.partition is None else (f"--partition={site.partition}",)
    return Resources(
        **{**defaults, **given},
        gpu_type=gpu_type,
        more=(*partition, *site.sbatch, *arguments.sbatch),  # of two equal options sbatch takes the later
        account=site.account or "",
        setup=(*site.setup, *arguments.setup),
    )


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


def submit(argv: Sequence[str], text: str = "") -> int:
    """Run a command that submits, with `text` as input, and return its exit status. Raises `SetupError` if it is missing."""
    try:
        return subprocess.run(argv, input=text, encoding="utf-8", check=False).returncode
    except OSError as error:
        raise SetupError(
            f"{argv[0]}: cannot be started: {error.strerror}; --submit needs a machine with Slurm's commands"
        ) from None
