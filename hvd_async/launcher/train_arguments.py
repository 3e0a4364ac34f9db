"""The command line of every rank of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hvd_async.launcher.program_variables import program_variables

Begin = Literal["", "resume", "overwrite", "auto-resume"]


@dataclass(frozen=True)
class TrainArguments:
    """Arguments of every rank.

    `begin`: a flag of `hvd-async train`, or empty. `is_launched`: the process that starts the ranks reports how the run
    ended.
    """

    config_path: str
    overrides: tuple[str, ...] = ()
    begin: Begin = ""
    progress: str = "auto"
    is_launched: bool = False
    own_program: tuple[str, ...] = ()
    """The training script of a user, which every rank runs instead of `hvd-async train`."""

    @property
    def variables(self) -> Mapping[str, str]:
        """The environment by which a script of the user gets these arguments."""
        if not self.own_program:
            return {}
        path = os.path.abspath(self.config_path) if self.config_path else None
        return program_variables(path, self.overrides, self.begin)

    def words(self) -> tuple[str, ...]:
        """Return the arguments as words of the command line of `hvd-async train` or `launch`."""
        sets = tuple(word for override in self.overrides for word in ("--set", override))
        return (self.config_path, *sets, *([f"--{self.begin}"] if self.begin else []))

    def program(self, python: str, flags: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return the program of one rank. `flags`: flags of the interpreter."""
        if self.own_program:
            return self.own_program
        progress = ("--progress", self.progress) if self.progress != "auto" else ()
        launched = ("--launched",) if self.is_launched else ()
        return (python, *flags, "-m", "hvd_async", "train", *self.words(), *progress, *launched)
