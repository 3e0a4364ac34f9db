"""Batch scripts for Slurm: templates in `scripts/`, filled in. Pure; the files in `slurm/` are what they give by default."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Literal, get_args

import jinja2

from hvd_async.errors import ConfigError

Script = Literal["train", "train-requeue", "heterogeneous", "compare"]
SCRIPTS: tuple[Script, ...] = get_args(Script)


@dataclass(frozen=True)
class Resources:
    """What is asked of Slurm, for the workers' nodes. `gpu_type`: as the cluster names it, where it has several; `more`: further
    options of sbatch, as they are; `time`: in Slurm's form; `account`: of all nodes; `setup`: lines of shell, run first."""

    nodes: int = 2
    workers_per_node: int = 4
    cpus_per_worker: int = 4
    gpus_per_node: int = 0
    gpu_type: str = ""
    time: str = "24:00:00"
    more: tuple[str, ...] = ()
    account: str = ""
    setup: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises `ConfigError` for what sbatch would misread."""
        for flag in ("nodes", "workers_per_node", "cpus_per_worker"):
            if getattr(self, flag) < 1:
                raise ConfigError(f"--{flag.replace('_', '-')}: got {getattr(self, flag)}, expected 1 or more")
        if self.gpus_per_node < 0:
            raise ConfigError(f"--gpus-per-node: got {self.gpus_per_node}, expected 0 or more")
        if not re.fullmatch(r"\d+(-\d+)?(:\d+){0,2}", self.time):
            raise ConfigError(f"--time: got {self.time!r}, expected minutes, H:MM:SS or D-HH, as sbatch has it")
        for line in self.setup:
            if not line.strip() or "\n" in line:
                raise ConfigError(f"--setup: got {line!r}, expected a line of shell, such as 'module load cuda/12.4'")
        for option in self.more:
            if not re.fullmatch(r"-[^\n]+", option):
                raise ConfigError(
                    f"--sbatch: got {option!r}, expected an option of sbatch in one line, such as --partition=gpu"
                )


@dataclass(frozen=True)
class ScriptJob:
    """What a script runs: a configuration with options of `hvd-async launch`, or a suite with those of `hvd-async compare`.

    `environment`: the folder of the Python environment; `folder`: of a suite's runs, by default from its name; `store_nodes`: of
    a store on nodes of its own; `path`: of the script, in its own comments."""

    script: Script
    target: str
    options: tuple[str, ...] = ()
    environment: str = ".venv"
    name: str = "hvd-async"
    launcher: str = "srun"
    folder: str = ""
    at_once: int = 4
    signal_seconds: int = 120
    store_nodes: int = 1
    path: str = ""


def render(job: ScriptJob, resources: Resources) -> str:
    """The text of the script. Raises `ConfigError` for values that have no place in one."""
    resources.check()
    if not re.fullmatch(r"[\w.+-]+", job.name):
        raise ConfigError(f"--job-name: got {job.name!r}, expected letters, digits and any of . + - _")
    loader = jinja2.PackageLoader("hvd_async.launcher", "scripts")
    # Shell, not HTML. Every value that a user gives freely is quoted here, for a shell.
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True, trim_blocks=True
    )
    return environment.get_template(f"{job.script}.sbatch").render(
        name=job.name,
        target=shlex.quote(job.target),
        options=[shlex.quote(option) for option in job.options],
        environment=shlex.quote(job.environment),
        launcher=job.launcher,
        folder=shlex.quote(job.folder) if job.folder else "",
        at_once=job.at_once,
        signal_seconds=job.signal_seconds,
        store_nodes=job.store_nodes,
        path=job.path or f"slurm/{job.script}.sbatch",
        nodes=resources.nodes,
        workers_per_node=resources.workers_per_node,
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_node=resources.gpus_per_node,
        gpu_type=f"{resources.gpu_type}:" if resources.gpu_type else "",
        account=resources.account,
        setup=resources.setup,
        time=resources.time,
        more=resources.more,
    )
