"""A job that was submitted: its state, its end, its result."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from hvd_async.cluster import lsf, pbs, slurm
from hvd_async.cluster.job_state import ENDED, JobState
from hvd_async.errors import HvdAsyncError, SetupError
from hvd_async.runs.folder import RunFolder
from hvd_async.system.json_text import parse_json
from hvd_async.system.processes import ask
from hvd_async.system.signals import STOP_SIGNALS

System = Literal["local", "slurm", "pbs", "lsf"]
BATCH_SYSTEMS = {"slurm": slurm, "pbs": pbs, "lsf": lsf}
# Time between questions to a batch system: short at first, then kind to a server that many ask.
_FIRST_SECONDS, _LONGEST_SECONDS = 0.5, 15.0
# A batch system may not know a job yet that it has just taken.
_UNKNOWN_SECONDS = 30.0


class JobError(HvdAsyncError):
    """A job ended without finishing its run."""


class SubmittedJob:
    """A run that `submit` has started.

    Another program can follow a job of a batch system: `SubmittedJob("slurm", "123", "runs/x")`.
    """

    def __init__(self, system: System, id: str, output: str | Path, *, log: str | Path | None = None) -> None:
        """Name a job. `id`: the batch system's own number of it, or of a local job that of its process; `output`: folder of
        the run; `log`: file of what the job prints, if it is known."""
        self.system = system
        """The batch system, or `local`."""
        self.id = id
        """The batch system's number of the job; of a local job that of its process."""
        self.output = Path(output).absolute()
        """Folder of the run."""
        self.log = None if log is None else Path(log).absolute()
        """File of what the job prints, if it is known."""
        self._process: _Process | None = None
        self._ended: JobState | None = None

    def __repr__(self) -> str:
        """Return the arguments that make this job."""
        return f"SubmittedJob({self.system!r}, {self.id!r}, {str(self.output)!r})"

    @property
    def state(self) -> JobState:
        """`pending`, `running`, `completed`, `failed` or `cancelled`. Asks the batch system, which may take seconds.

        Of a job that the batch system has forgotten, the run's summary tells whether it completed. A job that was requeued is
        pending again. Raises `SetupError` if the batch system cannot be asked.
        """
        if self._ended is None:
            state = self._state_now()
            self._ended = state if state in ENDED else None
            return state
        return self._ended

    def wait(self, timeout: float | None = None) -> JobState:
        """Block until the job has ended, and return its last state. Raises `TimeoutError` after `timeout` seconds; the job goes
        on."""
        began, pause = time.monotonic(), _FIRST_SECONDS
        while (state := self.state) not in ENDED:
            left = None if timeout is None else began + timeout - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"{self}: still {state} after {timeout:g} s")
            time.sleep(pause if left is None else min(pause, left))
            pause = _FIRST_SECONDS if self.system == "local" else min(_LONGEST_SECONDS, 1.5 * pause)
        return state

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
        _asked(BATCH_SYSTEMS[self.system].cancel_command(self.id), must_work=True)

    def _state_now(self) -> JobState:
        if self.system == "local":
            status = self._own_process().poll()
            if status is None:
                return "running"
            return "completed" if status == 0 else "cancelled" if status - 128 in STOP_SIGNALS else "failed"
        system = BATCH_SYSTEMS[self.system]
        give_up = time.monotonic() + _UNKNOWN_SECONDS
        while True:
            for command in system.state_commands(self.id):
                state: JobState | None = system.parse_state(_asked(command))
                if state is not None:
                    return state
            summary = self._summary()
            if summary is not None:
                return "completed" if str(summary.get("status")).startswith("finished") else "failed"
            if time.monotonic() > give_up:
                asked = system.state_commands(self.id)[0][0]
                raise SetupError(f"{self}: {asked} does not know this job, and its run has no summary.json")
            time.sleep(_FIRST_SECONDS)

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


def local_job(process: subprocess.Popen[bytes], output: str | Path, log: str | Path) -> SubmittedJob:
    """Return the job of a process of this machine."""
    job = SubmittedJob("local", str(process.pid), output, log=log)
    job._process = process
    return job


def _asked(command: Sequence[str], *, must_work: bool = False) -> str:
    """Return what a command of the batch system prints; empty if it fails. Raises `SetupError` if it cannot be started, or fails
    and `must_work`."""
    try:
        done = ask(list(command), "are the batch system's commands on PATH?")
    except SetupError:
        if command[0] == "sacct":  # many have no accounts
            return ""
        raise
    if done.returncode == 0:
        return done.stdout
    if must_work:
        said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise SetupError(f"{' '.join(command)}: exit status {done.returncode}: {said}")
    return ""
