"""One process: the reference that every other strategy is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hvd_async.cluster.topology import RankPlan
from hvd_async.store.wire.stop import StopNotice
from hvd_async.strategies import synchronous
from hvd_async.strategies.protocol import Job, JobSpec, Worker
from hvd_async.transport.group import Solo


class Single:
    """A worker alone."""

    name = "single"

    def __init__(self) -> None:
        """Starts nothing."""
        self.group = Solo()

    def check(self, spec: JobSpec) -> None:
        """See `Strategy.check`."""

    def execute(self, job: Job, loop: Callable[[Worker, torch.nn.Module], None]) -> StopNotice | None:
        """See `Strategy.execute`."""
        return synchronous.execute(job, self.group, synchronous.NoAllReduce(), loop)

    def transport(self, plans: Sequence[RankPlan], rank: int) -> str:
        """See `Strategy.transport`."""
        return ""  # nothing is sent

    def close(self) -> None:
        """See `Strategy.close`."""
