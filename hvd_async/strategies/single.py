"""Training in one process: the reference with which every other strategy is compared."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from hvd_async.cluster.topology import RankPlan
from hvd_async.strategies import synchronous
from hvd_async.strategies.protocol import Job, JobSpec, Session
from hvd_async.transport.group import Solo


class Single(synchronous.WithReplica):
    """A single worker."""

    name = "single"

    def __init__(self) -> None:
        """Start nothing."""
        self.group = Solo()

    def session(self, job: Job) -> AbstractContextManager[Session]:
        return synchronous.session(job, self.group, synchronous.NoAllReduce())

    def remarks(self, spec: JobSpec) -> Sequence[str]:
        return ()

    def transport(self, plans: Sequence[RankPlan], rank: int) -> str:
        return ""  # nothing is sent

    def close(self) -> None:
        """Do nothing: there are no resources to release."""
