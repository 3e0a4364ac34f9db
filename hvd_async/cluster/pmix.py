"""The variables by which PMIx, that is Open MPI or Slurm, tells a process which rank it is of which job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PmixProcess:
    """A process that was started as `rank` of the job `job`, by the name of its namespace; `job` is None if it is not known."""

    rank: int
    job: str | None


def job_of(variables: Mapping[str, str]) -> str | None:
    """Return the job to which a process with these `variables` belongs; None if it belongs to none."""
    return variables.get("PMIX_NAMESPACE")


def read_pmix(variables: Mapping[str, str] | None) -> PmixProcess | None:
    """Return the rank and job of a process with these `variables`; None if it is no rank, or nothing is known of it."""
    rank = (variables or {}).get("PMIX_RANK", "")
    return PmixProcess(int(rank), job_of(variables or {})) if rank.isdecimal() else None
