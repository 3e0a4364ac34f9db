"""Launchers, and how they start ranks."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from hvd_async.cluster.mpi_family import MpiFamily
from hvd_async.launcher.container import Container

LauncherName = Literal["mpirun", "srun", "horovodrun-mpi", "horovodrun-gloo"]


@dataclass(frozen=True)
class LaunchOptions:
    """Options for starting ranks. `pmi`: value of `srun --mpi`; `forward`: names of variables for other hosts; `path`: PATH
    of the launcher, if not the caller's; `unset`: names of variables to hide from the launcher; `is_live`: show the output
    of ranks before a line is complete, which a progress bar needs; `outlives`: ask mpirun to keep the other ranks
    when one dies, which Open MPI's does from version 5 on; `extra`: arguments for the launcher, unchanged; `container`: the
    image in which every rank runs, where `python` is that of the image."""

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
    outlives: bool = False
    extra: tuple[str, ...] = ()
    container: Container | None = None
