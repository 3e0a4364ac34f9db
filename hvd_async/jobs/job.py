"""A job that was submitted: its state, its end, its result."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from hvd_async.cluster import lsf, pbs, slurm
from hvd_async.cluster.job_state import ENDED, JobState
from hvd_async.errors import ConfigError, HvdAsyncError, SetupError
from hvd_async.runs.folder import RunFolder
from hvd_async.system.files import stamp_of
from hvd_async.system.json_text import parse_json
from hvd_async.system.processes import ask
from hvd_async.system.signals import STOP_SIGNALS

System = Literal["local", "slurm", "pbs", "lsf"]
BATCH_SYSTEMS = {"slurm": slurm, "pbs": pbs, "lsf": lsf}
Stamp = tuple[int, int] | None
# Time between questions to a batch system: short at first, then kind to a server that many ask.
_FIRST_SECONDS, _LONGEST_SECONDS = 0.5, 15.0
# A batch system may not know a job yet that it has just taken.
_UNKNOWN_SECONDS = 30.0
# A batch system may need some time to answer, even if the caller of `wait` has none; one that is broken may never answer.
_SHORTEST_ANSWER_SECONDS, _LONGEST_ANSWER_SECONDS = 3.0, 30.0


class JobError(HvdAsyncError):
    """A job ended without finishing its run."""


class SubmittedJob:
    """A run that `submit` has started.

    Another program can follow a job of a batch system: `SubmittedJob("slurm", "123", "runs/x")`.
    """

    def __init__(self, system: System, id: str | int, output: str | Path, *, log: str | Path | None = None) -> None:
        """Name a job. `id`: the batch system's own number of it, or of a local job that of its process; `output`: folder of
        the run; `log`: file of what the job prints, if it is known. Raises `ConfigError` for what cannot be a job."""
        check_system(system)
        self.system = system
        """The batch system, or `local`."""
        self.id = _checked_id(id)
        """The batch system's number of the job; of a local job that of its process."""
        self.output = _checked_path("output", output, "the folder of the run").absolute()
        """Folder of the run."""
        self.log = None if log is None else _checked_path("log", log, "a file").absolute()
        """File of what the job prints, if it is known."""
        self._process: _Process | None = None
        self._ended: JobState | None = None
        self._is_cancelled = False
        self._before: Stamp | Literal["unknown"] = "unknown"

    def __repr__(self) -> str:
        """Return the arguments that make this job."""
        return f"SubmittedJob({self.system!r}, {self.id!r}, {str(self.output)!r})"

    @property
    def state(self) -> JobState:
        """`pending`, `running`, `completed`, `failed` or `cancelled`. Asks the batch system, which may take seconds.

        If the batch system does not know the job, the run's summary tells whether the job completed; the summary of an
        earlier job does not count. A job that was requeued is pending again. Raises `SetupError` if the batch system does not
        answer, or if neither the batch system nor the run knows the job for half a minute.
        """
        give_up = time.monotonic() + _UNKNOWN_SECONDS
        while (state := self._look(_LONGEST_ANSWER_SECONDS, is_last=time.monotonic() > give_up)) is None:
            time.sleep(_FIRST_SECONDS)  # a job is known a moment after it was submitted, and nothing tells when
        return state

    def wait(self, timeout: float | None = None) -> JobState:
        """Block until the job has ended, and return its last state. Raises `TimeoutError` after `timeout` seconds; the job
        continues.

        Warns of a batch system that does not answer, and keeps asking. Raises `SetupError` if neither the batch system nor the
        run knows the job for half a minute, or if the batch system's commands cannot be started.
        """
        end = None if timeout is None else time.monotonic() + timeout
        pause, unknown_since, state = _FIRST_SECONDS, None, "unknown"
        while True:
            left = None if end is None else end - time.monotonic()
            patience = _LONGEST_ANSWER_SECONDS if left is None else max(_SHORTEST_ANSWER_SECONDS, left)
            is_last = unknown_since is not None and time.monotonic() > unknown_since + _UNKNOWN_SECONDS
            try:
                found = self._look(min(patience, _LONGEST_ANSWER_SECONDS), is_last=is_last)
            except _NoAnswer as error:
                if state != "without an answer":
                    warnings.warn(f"{error}; waiting for an answer", RuntimeWarning, stacklevel=2)
                state, unknown_since = "without an answer", None
            else:
                if found in ENDED:
                    return found
                state, unknown_since = found or "unknown", None if found else unknown_since or time.monotonic()
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"{self}: still {state} after {timeout:g} s")
            time.sleep(
                pause if left is None else min(pause, left)
            )  # batch systems are asked, and tell nothing by themselves
            # A job that is not known, or not any more, is looked for at short intervals.
            is_short = self.system == "local" or state == "unknown"
            pause = _FIRST_SECONDS if is_short else min(_LONGEST_SECONDS, 1.5 * pause)

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait as `wait` does, and return the run's summary: the contents of summary.json, which docs/run-folder.md describes.

        Raises `JobError`, with the last line of the log, if the job has not completed or left no summary.
        """
        state = self.wait(timeout)
        summary = self._summary()
        if state != "completed" or summary is None:
            why = state if state != "completed" else "completed, but there is no summary.json of its run"
            raise JobError(f"{self}: {why}{self._last_words()}")
        return summary

    def cancel(self) -> None:
        """Ask the job to end, and return at once. A run saves its state if it has the time, as docs/clusters.md tells.

        Does nothing if the job has ended. Raises `SetupError` if the batch system refuses.
        """
        if self.state in ENDED:
            return
        if self.system == "local":
            self._own_process().send_signal(signal.SIGTERM)
            return
        command = BATCH_SYSTEMS[self.system].cancel_command(self.id)
        done = ask(list(command), _HINT)
        if done.returncode != 0:
            raise SetupError(f"{' '.join(command)}: {_failure(done)}")
        self._is_cancelled = True

    def _look(self, patience: float, *, is_last: bool) -> JobState | None:
        """Return the state; None if nothing is known of the job. Raises `_NoAnswer` if the batch system does not answer in
        `patience` seconds, and `SetupError` for a job that is still not known if `is_last`."""
        if self._ended is None:
            state = self._state_now(patience, is_last=is_last)
            if state == "failed" and self._is_cancelled:
                state = "cancelled"
            if state not in ENDED:
                return state
            self._ended = state
        return self._ended

    def _state_now(self, patience: float, *, is_last: bool) -> JobState | None:
        if self.system == "local":
            status = self._own_process().poll()
            if status is None:
                return "running"
            return "completed" if status == 0 else "cancelled" if status - 128 in STOP_SIGNALS else "failed"
        system = BATCH_SYSTEMS[self.system]
        failures = []
        for command in system.state_commands(self.id):
            try:
                printed = _asked(command, system.UNKNOWN, patience)
            except _NoAnswer as error:
                failures.append(error)
                continue
            state: JobState | None = system.parse_state(printed)
            if state is not None:
                return state
        summary = self._summary_of_this_job(is_last=is_last)
        if summary is not None:
            return "completed" if str(summary.get("status")).startswith("finished") else "failed"
        if failures:
            raise _NoAnswer(f"{self}: {failures[0]}")
        if is_last:
            asked = system.state_commands(self.id)[0][0]
            raise SetupError(f"{self}: {asked} does not know this job, and its run has no summary.json of this job")
        return None

    def _summary_of_this_job(self, *, is_last: bool) -> dict[str, Any] | None:
        """Return the summary, if this job has written it. One that names no job counts if it was not there at submission, or, if
        that is not known, at last (`is_last`)."""
        stamp = stamp_of(RunFolder(str(self.output)).summary)
        if stamp is None or stamp == self._before:
            return None
        summary = self._summary()
        job = None if summary is None else summary.get("job")
        if isinstance(job, dict) and job.get("id"):
            # PBS may add the name of its server, in a longer or a shorter form.
            return summary if str(job["id"]).partition(".")[0] == self.id.partition(".")[0] else None
        return summary if is_last or self._before != "unknown" else None

    def _own_process(self) -> _Process:
        if self._process is None:
            raise SetupError(f"{self}: a local job can only be followed by the program that has submitted it")
        return self._process

    def _summary(self) -> dict[str, Any] | None:
        try:
            document = parse_json(RunFolder(str(self.output)).summary.read_bytes())
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    def _last_words(self) -> str:
        if self.log is None:
            return ""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return f"; see {self.log}"
        said = [line for line in lines if line.startswith("hvd-async: ")] or [line for line in lines if line.strip()]
        return f"; see {self.log}: {said[-1].strip()}" if said else f"; see {self.log}"


class _Process(Protocol):
    def poll(self) -> int | None: ...

    def send_signal(self, number: int) -> None: ...


class _NoAnswer(SetupError):
    """A batch system has not said whether it knows a job."""


def check_system(system: str) -> None:
    """Raise `ConfigError` unless `system` is one of `System`."""
    if system not in get_args(System):
        raise ConfigError(f"system: got {system!r}, expected one of {', '.join(get_args(System))}")


def _checked_id(id: str | int) -> str:
    """Return the number of a job as text. Raises `ConfigError` for a text that a command could take for something else."""
    if isinstance(id, bool) or not isinstance(id, str | int) or not re.fullmatch(r"\d[\w.\[\]-]*", str(id), re.ASCII):
        raise ConfigError(
            f"id: got {id!r}, expected the number of a job as the batch system tells it, such as 123 or 12.server"
        )
    return str(id)


def _checked_path(name: str, path: object, kind: str) -> Path:
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ConfigError(f"{name}: got {path!r}, expected {kind}")
    return Path(path)


def local_job(process: subprocess.Popen[bytes], output: str | Path, log: str | Path) -> SubmittedJob:
    """Return the job of a process of this machine."""
    job = SubmittedJob("local", process.pid, output, log=log)
    job._process = process
    return job


def batch_job(system: System, id: str, output: str | Path, log: str | Path, before: Stamp) -> SubmittedJob:
    """Return a job of a batch system. `before`: the stamp of the run's summary.json before the job was submitted."""
    job = SubmittedJob(system, id, output, log=log)
    job._before = before
    return job


_HINT = "are the batch system's commands on PATH?"


def _asked(command: Sequence[str], unknown: re.Pattern[str], patience: float) -> str:
    """Return what a command of the batch system prints; empty if it says, in words of `unknown`, that it knows no such job.

    Raises `_NoAnswer` if it fails in another way or takes more than `patience` seconds, and `SetupError` if it cannot be
    started.
    """
    if shutil.which(command[0]) is None:
        if command[0] == "sacct":  # many have no accounts
            return ""
        raise SetupError(f"{command[0]}: not found; {_HINT}")
    try:
        done = ask(list(command), "is the batch system at work?", patience)
    except SetupError as error:
        raise _NoAnswer(str(error)) from None
    if done.returncode == 0:
        return done.stdout
    if unknown.search(done.stderr + done.stdout):
        return ""
    raise _NoAnswer(f"{' '.join(command)}: {_failure(done)}")


def _failure(done: subprocess.CompletedProcess[str]) -> str:
    said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
    return f"exit status {done.returncode}: {said}"
