"""All facts about LSF (IBM Spectrum LSF): the variables of a job, its list of hosts, the states of jobs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from hvd_async.cluster.batch_job import BatchJob
from hvd_async.cluster.hosts import Host, hosts_of_slots
from hvd_async.cluster.job_state import JobState
from hvd_async.errors import SetupError


def read_job(environ: Mapping[str, str]) -> BatchJob | None:
    """Return the job of a process with environment `environ`; None outside of any job. LSF tells no number of restarts."""
    number = environ.get("LSB_JOBID")
    if not number:
        return None
    index = environ.get("LSB_JOBINDEX", "0")  # 0 in a job that is no array
    return BatchJob(
        id=number,
        restarts=0,
        array_job=None if index in ("", "0") else number,
        array_task=None if index in ("", "0") else index,
        name=environ.get("LSB_JOBNAME") or None,
        partition=environ.get("LSB_QUEUE") or None,
    )


def detect_allocation(environ: Mapping[str, str]) -> tuple[Host, ...] | None:
    """Return the hosts of the job, from LSB_MCPU_HOSTS, such as `a 4 b 4`; None outside of any job.

    A host's slots are those that the job asked for with `bsub -n`. Raises `SetupError` for a malformed variable.
    """
    text = environ.get("LSB_MCPU_HOSTS", "")
    if not environ.get("LSB_JOBID") or not text:
        return None
    words = text.split()
    if len(words) % 2 or not all(number.isdecimal() and int(number) > 0 for number in words[1::2]):
        raise SetupError(
            f"environment variable LSB_MCPU_HOSTS: got {text!r}, expected HOST SLOTS HOST SLOTS ... from LSF; unset it"
        )
    pairs = zip(words[::2], map(int, words[1::2]), strict=True)
    return hosts_of_slots(list(itertools.chain.from_iterable([name] * slots for name, slots in pairs)), "LSB_MCPU_HOSTS")


_STATES: Mapping[str, JobState] = {
    **dict.fromkeys(("PEND", "PSUSP", "WAIT", "PROV"), "pending"),
    **dict.fromkeys(("RUN", "USUSP", "SSUSP", "UNKWN"), "running"),
    "DONE": "completed",
    "EXIT": "failed",
    "ZOMBI": "failed",
}
UNKNOWN = re.compile(r"is not found|No (\w+ )?job found")
"""What the commands print of a job that they do not know."""
_KILLED = re.compile(r"\bTERM_(OWNER|ADMIN|FORCE_OWNER|FORCE_ADMIN)\b")


def parse_submitted(printed: str) -> str | None:
    """Return the number of the job from what bsub printed, such as `Job <12> is submitted to queue <normal>.`"""
    found = re.search(r"^Job <(\d+)> is submitted", printed, re.MULTILINE)
    return found[1] if found else None


def state_commands(job: str) -> tuple[tuple[str, ...], ...]:
    """Return commands that tell the state of a job."""
    return (("bjobs", "-noheader", "-o", "stat exit_reason", job),)


def parse_state(printed: str) -> JobState | None:
    """Return the state in the output of such a command; None if it tells none."""
    words = printed.split()
    if not words or words[0] not in _STATES:
        return None
    return "cancelled" if _KILLED.search(printed) else _STATES[words[0]]


def cancel_command(job: str) -> tuple[str, ...]:
    """Return the command that cancels a job."""
    return ("bkill", job)
