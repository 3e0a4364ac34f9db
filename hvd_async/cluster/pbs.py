"""All facts about PBS (PBS Professional, OpenPBS, Torque): the variables of a job, and its file of nodes."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from hvd_async.cluster.batch_job import BatchJob
from hvd_async.cluster.hosts import Host, hosts_of_slots
from hvd_async.errors import SetupError


def read_job(environ: Mapping[str, str]) -> BatchJob | None:
    """Return the job of a process with environment `environ`; None outside of any job. PBS tells no number of restarts."""
    number = environ.get("PBS_JOBID")
    if not number:
        return None
    # `123[4].server` is task 4 of array `123[].server`; Torque writes `123-4.server`, and the task into PBS_ARRAYID.
    task = environ.get("PBS_ARRAY_INDEX") or environ.get("PBS_ARRAYID") or None
    return BatchJob(
        id=number,
        restarts=0,
        array_job=None if task is None else environ.get("PBS_ARRAY_ID") or number.replace(f"[{task}]", "[]"),
        array_task=task,
        name=environ.get("PBS_JOBNAME") or None,
        partition=environ.get("PBS_QUEUE") or None,
        cluster=environ.get("PBS_SERVER") or None,
    )


def detect_allocation(environ: Mapping[str, str]) -> tuple[Host, ...] | None:
    """Return the nodes of the job, from the file that PBS_NODEFILE names; None outside of any job.

    A node's slots are its lines in the file: the `mpiprocs` of `select=2:ncpus=8:mpiprocs=4`, or Torque's `ppn`. Raises
    `SetupError` if the file cannot be read.
    """
    if not environ.get("PBS_JOBID") or not environ.get("PBS_NODEFILE"):
        return None
    path = environ["PBS_NODEFILE"]
    try:
        names = pathlib.Path(path).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(
            f"PBS_NODEFILE: {path}: cannot be read: {error}; expected the nodes of job {environ['PBS_JOBID']}"
        ) from None
    return hosts_of_slots(names, f"PBS_NODEFILE: {path}")
