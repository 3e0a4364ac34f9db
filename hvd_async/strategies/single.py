"""Training in one process: the reference with which every other strategy is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hvd_async.cluster.topology import RankPlan
from hvd_async.store.wire.stop import StopNotice
from hvd_async.strategies import synchronous
from hvd_async.strategies.protocol import Job, JobSpec, Worker
from hvd_async.transport.group import Solo


class Single:
    """A single worker."""

    name = "single"

    def __init__(self) -> None:
        """Start nothing."""
        self.group = Solo()

    def check(self, spec: JobSpec) -> None:
        """Accept every job."""

    def execute(self, job: Job, loop: Callable[[Worker, torch.nn.Module], None]) -> StopNotice | None:
        return synchronous.execute(job, self.group, synchronous.NoAllReduce(), loop)

    def transport(self, plans: Sequence[RankPlan], rank: int) -> str:
        return ""  # nothing is sent

    def close(self) -> None:
        """Do nothing: there are no resources to release."""
