"""All facts about PBS (PBS Professional, OpenPBS, Torque): the variables of a job, its file of nodes, the states of jobs."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping

from hvd_async.cluster.batch_job import BatchJob
from hvd_async.cluster.hosts import Host, hosts_of_slots
from hvd_async.cluster.job_state import JobState
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


_STATES: Mapping[str, JobState] = {
    **dict.fromkeys("QHWTM", "pending"),  # queued, held, waiting, moved
    **dict.fromkeys("RESUB", "running"),  # running, exiting, suspended, suspended for a user, an array that has begun
}
UNKNOWN = re.compile(r"Unknown Job Id|Job has finished|not configured to maintain job history|(illegal|invalid) option")
"""What the commands print of a job that they do not know, or do not know any more. Some servers keep no history of jobs."""
# Exit status of `launch` after SIGTERM. A job that a signal has ended has 256 + signal, or 128 + signal, whether a user has
# deleted the job, its time was over, or it took too much memory: that is a failure, unless it is known who has ended it.
_STOPPED = 143


def parse_submitted(printed: str) -> str | None:
    """Return the name of the job from what qsub printed, such as `12.server`."""
    found = re.search(r"^(\d+(?:\[\])?(?:\.[\w.-]+)?)\s*$", printed, re.MULTILINE)
    return found[1] if found else None


def state_commands(job: str) -> tuple[tuple[str, ...], ...]:
    """Return commands that tell the state of a job, the second without the history of jobs, which a server may not keep."""
    return ("qstat", "-x", "-f", job), ("qstat", "-f", job)


def parse_state(printed: str) -> JobState | None:
    """Return the state in the output of such a command; None if it tells none."""
    state = re.search(r"^\s*job_state = ([A-Z])", printed, re.MULTILINE)
    if state is None:
        return None
    if state[1] in _STATES:
        return _STATES[state[1]]
    status = re.search(r"^\s*(?:Exit_status|exit_status) = (-?\d+)", printed, re.MULTILINE)
    if status is None or int(status[1]) == _STOPPED:  # none: it was deleted before it ran
        return "cancelled"
    return "completed" if int(status[1]) == 0 else "failed"


def cancel_command(job: str) -> tuple[str, ...]:
    """Return the command that cancels a job."""
    return ("qdel", job)
