"""The known batch systems. Each has a file beside this one; the functions below ask them in turn."""

from __future__ import annotations

from collections.abc import Mapping

from hvd_async.cluster import lsf, pbs, slurm
from hvd_async.cluster.batch_job import BatchJob
from hvd_async.cluster.hosts import Host

_SYSTEMS = (slurm, pbs, lsf)


def read_batch_job(environ: Mapping[str, str]) -> BatchJob | None:
    """Return the batch system's job to which `environ` belongs; None outside of any job."""
    return next((job for system in _SYSTEMS if (job := system.read_job(environ)) is not None), None)


def detect_allocation(environ: Mapping[str, str]) -> tuple[Host, ...] | None:
    """Return the nodes of the job to which `environ` belongs; None outside of any job. Raises `SetupError`.

    May run commands of the batch system, and read files that it has written.
    """
    return next((hosts for system in _SYSTEMS if (hosts := system.detect_allocation(environ)) is not None), None)


def variables_to_unset(environ: Mapping[str, str], *, starts_ranks: bool) -> tuple[str, ...]:
    """Return the variables of the job in `environ` that must be hidden from the launcher. `starts_ranks`: the launcher is the
    batch system's own, not an MPI library's."""
    return slurm.variables_to_unset(environ, starts_ranks=starts_ranks)
