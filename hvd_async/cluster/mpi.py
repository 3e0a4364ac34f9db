"""Implementations of MPI, as their mpirun and library name themselves."""

from __future__ import annotations

from typing import Literal, get_args

from hvd_async.errors import SetupError
from hvd_async.system.processes import ask

MpiFamily = Literal["openmpi", "mpich", "intel"]


def parse_mpi_family(version_text: str) -> MpiFamily | None:
    """The family of the mpirun that answers `--version` with this text, None for one we do not know."""
    if "intel(r) mpi" in version_text.lower():
        return "intel"
    if "open mpi" in version_text.lower() or "open-mpi" in version_text.lower():
        return "openmpi"
    return "mpich" if "hydra" in version_text.lower() or "mpich" in version_text.lower() else None


def detect_mpi(mpirun: str = "mpirun") -> MpiFamily:
    """Ask `mpirun` what it is. Raises `SetupError` where there is none, or one of another kind."""
    done = ask([mpirun, "--version"], "run launch/setup.sh, or put an MPI's mpirun on PATH")
    answer = done.stdout + done.stderr  # some say it on the one, some on the other
    family = parse_mpi_family(answer)
    if family is None:
        first = answer.strip().partition("\n")[0]
        raise SetupError(f"{mpirun} --version: got {first!r}, expected one of {', '.join(get_args(MpiFamily))}")
    return family
