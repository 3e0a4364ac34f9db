"""Table of what each batch system calls the things that a script asks for, and the command that submits a script. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from hvd_async.errors import ConfigError

SystemName = Literal["slurm", "pbs", "lsf"]
Script = Literal["train", "train-requeue", "heterogeneous", "compare"]
SCRIPTS: tuple[Script, ...] = get_args(Script)


@dataclass(frozen=True)
class Dialect:
    """The language of a batch system's scripts.

    `title`: its name in messages; `submit`: the command that reads a script from standard input, prints a line with the number of
    the job, and gives its name to a flag for further options; `scripts`: those that have a template for it, the default first;
    `queue`, `account`: the options with which a job chooses its queue and its account; `starts_ranks`: whether it has a launcher
    of its own.
    """

    name: SystemName
    title: str
    submit: str
    scripts: tuple[Script, ...]
    queue: str
    account: str
    starts_ranks: bool = False

    @property
    def suffix(self) -> str:
        """Ending of the names of its scripts."""
        return ".sbatch" if self.name == "slurm" else f".{self.name}"

    @property
    def folder(self) -> str:
        """Folder of the ready scripts in a checkout."""
        return "slurm" if self.name == "slurm" else f"launch/{self.name}"

    def time(self, text: str) -> str:
        """Return the time limit `text`, as `seconds_of` reads it, in this system's format."""
        if self.name == "slurm":
            return text
        total = seconds_of(text)
        if self.name == "pbs":
            return f"{total // 3600:02}:{total // 60 % 60:02}:{total % 60:02}"
        minutes = math.ceil(total / 60)
        return f"{minutes // 60}:{minutes % 60:02}"


DIALECTS: dict[SystemName, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect("slurm", "Slurm", "sbatch", SCRIPTS, "--partition={}", "--account={}", starts_ranks=True),
        Dialect("pbs", "PBS", "qsub", ("train", "train-requeue"), "-q {}", "-A {}"),
        Dialect("lsf", "LSF", "bsub", ("train", "train-requeue"), "-q {}", "-P {}"),
    )
}


def seconds_of(time: str) -> int:
    """Return the seconds of a time limit in sbatch's format: minutes, M:SS, H:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS.

    Raises `ConfigError` for anything else.
    """
    found = re.fullmatch(r"(?:(\d{1,6})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", time)
    if not found:
        raise ConfigError(f"--time: got {time!r}, expected minutes, H:MM:SS or D-HH, in sbatch's format")
    parts = [int(part) for part in found.groups()[1:] if part is not None]
    if found[1] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return 86400 * int(found[1]) + 3600 * hours + 60 * minutes + seconds
    hours, minutes, seconds = parts if len(parts) == 3 else (0, *parts, 0)[:3]
    return 3600 * hours + 60 * minutes + seconds
