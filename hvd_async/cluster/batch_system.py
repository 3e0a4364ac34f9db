"""The batch systems that are known, each a file of its own beside this one; a new one is asked here after the others."""

from __future__ import annotations

from collections.abc import Mapping

from hvd_async.cluster import slurm
from hvd_async.cluster.batch_job import BatchJob
from hvd_async.cluster.hosts import Host


def read_batch_job(environ: Mapping[str, str]) -> BatchJob | None:
    """Return the job of a batch system that `environ` is of; None outside of any."""
    return slurm.read_job(environ)


def detect_allocation(environ: Mapping[str, str]) -> tuple[Host, ...] | None:
    """Return the nodes of the job that `environ` is of; None outside of any. Raises `SetupError`.

    May ask the batch system's own commands.
    """
    return slurm.detect_allocation(environ)
