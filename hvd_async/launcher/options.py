"""By what ranks are started."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from hvd_async.cluster.mpi import MpiFamily

LauncherName = Literal["mpirun", "horovodrun-mpi", "horovodrun-gloo", "srun"]


@dataclass(frozen=True)
class LaunchOptions:
    """By what ranks are started. `pmi`: what `srun --mpi` is to be; `forward`: names of variables for other hosts; `path`: PATH
    for the launcher, where it is not the caller's; `unset`: names of variables that the launcher is not to have; `is_live`:
    show lines of ranks before they are whole, as a bar needs it; `extra`: for the launcher, as it is."""

    mpi: MpiFamily = "openmpi"
    launcher: LauncherName = "mpirun"
    pmi: str = ""
    mpirun: str = "mpirun"
    horovodrun: str = "horovodrun"
    srun: str = "srun"
    python: str = sys.executable
    python_flags: tuple[str, ...] = ()
    as_root: bool = False
    forward: tuple[str, ...] = ()
    path: str | None = None
    unset: tuple[str, ...] = ()
    is_live: bool = False
    extra: tuple[str, ...] = ()
