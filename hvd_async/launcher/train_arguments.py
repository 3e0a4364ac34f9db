"""The command line of every rank of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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

    def words(self) -> tuple[str, ...]:
        """Return the arguments as words of the command line of `hvd-async train` or `launch`."""
        sets = tuple(word for override in self.overrides for word in ("--set", override))
        return (self.config_path, *sets, *([f"--{self.begin}"] if self.begin else []))

    def program(self, python: str, flags: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return the program of one rank. `flags`: flags of the interpreter."""
        progress = ("--progress", self.progress) if self.progress != "auto" else ()
        launched = ("--launched",) if self.is_launched else ()
        return (python, *flags, "-m", "hvd_async", "train", *self.words(), *progress, *launched)
