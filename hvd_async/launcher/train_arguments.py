"""What every rank of a run is told on its command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Begin = Literal["", "resume", "overwrite", "auto-resume"]


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
