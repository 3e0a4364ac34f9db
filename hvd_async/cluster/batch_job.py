"""A job of a batch system, from its environment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchJob:
    """A job, with the batch system's own values.

    Attributes:
        id: number of this job; an array task has a number of its own, and `array_job` is that of the array.
        restarts: how often the batch system has restarted the job.
        array_task: number of the task in its array.
        partition: the partition of Slurm, or the queue of PBS and LSF.
        nodes: all nodes of the job, in the short form of the batch system: `n[1-4]`.
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
        """Return one line that describes the job."""
        task = "" if self.array_task is None else f", task {self.array_task} of array {self.array_job}"
        partition = None if self.partition is None else f"partition {self.partition}"
        what = ", ".join(part for part in (self.name, partition) if part)
        restarts = f", restart {self.restarts}" if self.restarts else ""
        return f"job {self.id}{task}{f' ({what})' if what else ''}{restarts}"
