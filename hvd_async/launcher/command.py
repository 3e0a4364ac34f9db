"""What is run: an argument vector, and what every rank is told."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Begin = Literal["", "resume", "overwrite", "auto-resume"]


@dataclass(frozen=True)
class Command:
    """An argument vector, the variables added to the caller's environment, and those taken out of it."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    without: tuple[str, ...] = ()

    def environ(self, callers: Mapping[str, str]) -> dict[str, str]:
        """The environment to run it in, from the caller's."""
        return {**{name: value for name, value in callers.items() if name not in self.without}, **self.environment}

    def shell_text(self) -> str:
        """One line that does the same when pasted into a shell."""
        words = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.environment.items())]
        if self.without:
            words = ["env", *(word for name in self.without for word in ("-u", name)), *words]
        return " ".join([*words, shlex.join(self.argv)])


@dataclass(frozen=True)
class TrainArguments:
    """What every rank is told.

    `begin`: a flag of `hvd-async train`, or none. `is_launched`: whoever starts the ranks tells how the run ended.
    """

    config_path: str
    overrides: tuple[str, ...] = ()
    begin: Begin = ""
    progress: str = "auto"
    is_launched: bool = False

    def words(self) -> tuple[str, ...]:
        """The same, as arguments of `hvd-async train` or `launch`."""
        sets = tuple(word for override in self.overrides for word in ("--set", override))
        return (self.config_path, *sets, *([f"--{self.begin}"] if self.begin else []))

    def program(self, python: str, flags: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The program of one rank. `flags`: of the interpreter."""
        progress = ("--progress", self.progress) if self.progress != "auto" else ()
        launched = ("--launched",) if self.is_launched else ()
        return (python, *flags, "-m", "hvd_async", "train", *self.words(), *progress, *launched)
