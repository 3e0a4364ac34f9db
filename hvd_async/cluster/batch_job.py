"""A job of a batch system, as its environment tells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchJob:
    """A job, in the words of the batch system.

    Attributes:
        id: of this job; of an array task it is its own, and `array_job` that of the array.
        restarts: how often the batch system has started it again.
        array_task: its number in the array.
        nodes: all of the job, in the short form of the batch system: `n[1-4]`.
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
