"""Batch scripts, from the templates in `templates/`. Pure. The files in `slurm/`, `pbs/` and `lsf/` are those with defaults."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

import jinja2

from hvd_async.errors import ConfigError
from hvd_async.launcher.batch_dialect import DIALECTS, SCRIPTS, Dialect, Script, SystemName, seconds_of
from hvd_async.system.printable import shortened

__all__ = ["SCRIPTS", "Resources", "Script", "ScriptJob", "render"]


@dataclass(frozen=True)
class Resources:
    """Resources that a script asks of a batch system, for the workers' nodes. `gpu_type`: the cluster's name for it, if it has
    several types; `more`: further options of sbatch, qsub or bsub, unchanged; `time`: in sbatch's format; `account`: for all
    nodes; `setup`: lines of shell, run first."""

    nodes: int = 2
    workers_per_node: int = 4
    cpus_per_worker: int = 4
    gpus_per_node: int = 0
    gpu_type: str = ""
    time: str = "24:00:00"
    more: tuple[str, ...] = ()
    account: str = ""
    setup: tuple[str, ...] = ()

    def check(self, dialect: Dialect = DIALECTS["slurm"]) -> None:
        """Refuse values that the batch system would misread. Raises `ConfigError`."""
        for flag in ("nodes", "workers_per_node", "cpus_per_worker"):
            if getattr(self, flag) < 1:
                raise ConfigError(f"--{flag.replace('_', '-')}: got {getattr(self, flag)}, expected 1 or more")
        if self.gpus_per_node < 0:
            raise ConfigError(f"--gpus-per-node: got {self.gpus_per_node}, expected 0 or more")
        seconds_of(self.time)
        if self.gpu_type and dialect.name == "pbs":
            raise ConfigError(
                f"--gpus-per-node: got the type {self.gpu_type}, for which PBS has no option of its own; leave it out,"
                " and edit the script as your cluster's documentation says"
            )
        if not re.fullmatch(r"[\w.,@+-]*", self.account):
            raise ConfigError(f"--account: got {self.account!r}, expected letters, digits and any of . , @ + - _")
        for line in self.setup:
            if not line.strip() or "\n" in line:
                raise ConfigError(f"--setup: got {line!r}, expected a line of shell, such as 'module load cuda/12.4'")
        for option in self.more:
            if not re.fullmatch(r"-[^\n]+", option):
                raise ConfigError(
                    f"--{dialect.submit}: got {option!r}, expected an option of {dialect.submit} on one line, such as"
                    f" {dialect.queue.format('gpu')}"
                )


@dataclass(frozen=True)
class ScriptJob:
    """Job of a script: a configuration with options of `hvd-async launch`, or a suite with options of `hvd-async compare`.

    `environment`: folder of the Python environment; `conda`: instead of it, an environment of conda, by name or path;
    `folder`: folder of a suite's runs, by default from the suite's name; `store_nodes`: number of nodes of a store that has its
    own; `path`: path of the script, for its comments."""

    script: Script
    target: str
    options: tuple[str, ...] = ()
    environment: str = ".venv"
    conda: str = ""
    name: str = "hvd-async"
    launcher: str = "srun"
    folder: str = ""
    at_once: int = 4
    signal_seconds: int = 120
    store_nodes: int = 1
    path: str = ""
    system: SystemName = "slurm"
    program: tuple[str, ...] = ()
    """The training script of a user, with its arguments; then `target` is not used."""


def render(job: ScriptJob, resources: Resources) -> str:
    """Return the text of the script. Raises `ConfigError` for values that a script cannot hold."""
    dialect = DIALECTS[job.system]
    resources.check(dialect)
    if not re.fullmatch(r"\w[\w.+-]{0,199}", job.name):
        raise ConfigError(
            f"--job-name: got {shortened(job.name)}, expected letters, digits and any of . + - _, at most 200, the first of"
            " them a letter or a digit"
        )
    if job.conda.startswith("-") or "\n" in job.conda:
        raise ConfigError(f"--conda: got {job.conda!r}, expected the name or the path of an environment")
    is_unlimited = job.system == "slurm" and seconds_of(resources.time) == 0
    if seconds_of(resources.time) <= job.signal_seconds and not is_unlimited:
        raise ConfigError(
            f"--time: got {resources.time}, expected more than the {job.signal_seconds} seconds that are kept for saving"
        )
    loader = jinja2.PackageLoader("hvd_async.launcher")
    # Shell, not HTML: no autoescape. Every value that a user chooses freely is quoted below, for a shell.
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True, trim_blocks=True
    )
    return environment.get_template(f"{job.script}{dialect.suffix}").render(
        name=job.name,
        target=shlex.quote(job.target),
        options=[shlex.quote(option) for option in job.options],
        environment=shlex.quote(job.environment),
        conda=shlex.quote(job.conda) if job.conda else "",
        launcher=job.launcher,
        folder=shlex.quote(job.folder) if job.folder else "",
        at_once=job.at_once,
        signal_seconds=job.signal_seconds,
        signal_minutes=-(-job.signal_seconds // 60),
        store_nodes=job.store_nodes,
        program=shlex.join(job.program),
        path=job.path or f"{dialect.folder}/{job.script}{dialect.suffix}",
        nodes=resources.nodes,
        workers_per_node=resources.workers_per_node,
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_node=resources.gpus_per_node,
        gpu_type=resources.gpu_type,
        account=resources.account,
        setup=resources.setup,
        time=dialect.time(resources.time),
        seconds=seconds_of(resources.time),
        more=resources.more,
    )
