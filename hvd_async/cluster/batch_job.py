"""The job of a batch system that a process belongs to, as its environment tells. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchJob:
    """A job of Slurm.

    Attributes:
        id: of this job; of an array task it is its own, and `array_job` that of the array.
        restarts: how often the batch system has started it again.
        array_task: its number in the array.
        nodes: all of the job, in Slurm's short form: `n[1-4]`.
    """

    id: str
    restarts: int
    array_job: str | None = None
    array_task: str | None = None
    name: str | None = None
    partition: str | None = None
    nodes: str | None = None
    cluster: str | None = None

    def __str__(self) -> str:
        """In a line, for a person."""
        task = "" if self.array_task is None else f", task {self.array_task} of array {self.array_job}"
        partition = None if self.partition is None else f"partition {self.partition}"
        what = ", ".join(part for part in (self.name, partition) if part)
        restarts = f", restart {self.restarts}" if self.restarts else ""
        return f"job {self.id}{task}{f' ({what})' if what else ''}{restarts}"


def read_batch_job(environ: Mapping[str, str]) -> BatchJob | None:
    """The job that `environ` is of; None outside of any.

    All processes of a job have these variables: its script, what mpirun starts, and the ranks under srun.
    """
    number = environ.get("SLURM_JOB_ID")
    if not number:
        return None
    restarts = environ.get("SLURM_RESTART_COUNT", "")

    def value(name: str) -> str | None:
        return environ.get(f"SLURM_{name}") or None  # empty is as good as absent

    return BatchJob(
        id=number,
        restarts=int(restarts) if restarts.isdecimal() else 0,
        array_job=value("ARRAY_JOB_ID"),
        array_task=value("ARRAY_TASK_ID"),
        name=value("JOB_NAME"),
        partition=value("JOB_PARTITION"),
        nodes=value("JOB_NODELIST"),
        cluster=value("CLUSTER_NAME"),
    )
