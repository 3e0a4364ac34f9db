"""Whether and how the others go on without a worker that dies."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from hvd_async.cluster.environment import keeps_other_ranks, read_environment
from hvd_async.cluster.slurm import SRUN
from hvd_async.errors import ConfigError, DismissedError, OrphanedError, PeerError
from hvd_async.strategies.protocol import JobSpec
from hvd_async.vectors import arithmetic


def obstacle_to_outliving(job: JobSpec) -> str:
    """Return why the run ends with the first worker that dies; empty if it goes on without."""
    if job.strategy.on_worker_failure == "stop":
        return "strategy.on_worker_failure is stop"
    launched = read_environment(os.environ)
    if launched is not None and launched.launcher is SRUN:
        return "srun ends all ranks when one dies; in a Slurm job, `hvd-async launch --launcher mpirun` keeps the others"
    if not keeps_other_ranks(os.environ):
        return "only Open MPI's mpirun with --with-ft ulfm, as `hvd-async launch` starts it, keeps the other ranks"
    if job.push.node_sum and not arithmetic.is_compiled():
        return "push.node_sum without the C extension: MPI's atomic operations take a lock"
    if any(plan.worker is not None and plan.shard is not None for plan in job.plans):
        return "strategy.placement is colocated: a worker's rank has a part of the store"
    return ""


def is_outlived(error: BaseException) -> bool:
    """Whether the others go on without a worker that ends by `error`: not if it is a mistake that each of them would make, or the
    end of the whole run."""
    is_of_whole_run = isinstance(error, PeerError) and not isinstance(error, DismissedError)
    return isinstance(error, Exception) and not is_of_whole_run and not isinstance(error, ConfigError | OrphanedError)


def end_as_dead() -> NoReturn:
    """End this process by a signal. MPI notices that; it would wait for a process that exits with a status."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")
