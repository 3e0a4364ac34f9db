"""Training in one process: the reference with which every other strategy is compared."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from hvd_async.cluster.topology import RankPlan
from hvd_async.strategies import synchronous
from hvd_async.strategies.protocol import Job, JobSize, JobSpec, Session
from hvd_async.transport.capacity import Need
from hvd_async.transport.group import Solo


class Single:
    """A single worker."""

    name = "single"
    less_memory = "use a smaller model"

    def __init__(self) -> None:
        """Start nothing."""
        self.group = Solo()

    def needs(self, job: JobSize, rank: int) -> Sequence[Need]:
        return synchronous.needs(job, rank)

    def session(self, job: Job) -> AbstractContextManager[Session]:
        return synchronous.session(job, self.group, synchronous.NoAllReduce())

    def remarks(self, spec: JobSpec) -> Sequence[str]:
        return ()

    def transport(self, plans: Sequence[RankPlan], rank: int) -> str:
        return ""  # nothing is sent

    def close(self) -> None:
        """Do nothing: there are no resources to release."""
