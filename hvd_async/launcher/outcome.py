"""The outcome of a run, from its launcher's exit status and from the summary that the run itself wrote."""

from __future__ import annotations

import pathlib
import signal
from dataclasses import dataclass
from typing import Any

from hvd_async.errors import CheckpointError, ConfigError, DataError, DifferenceError, DivergedError, SetupError
from hvd_async.system.durations import clock_text
from hvd_async.system.files import stamp_of
from hvd_async.system.json_text import parse_json
from hvd_async.system.processes import Ended
from hvd_async.system.signals import STOP_SIGNALS

# Exit statuses of failures that a restart would repeat: refused configurations, data, machines, checkpoints; divergence.
_REFUSED = tuple(
    kind.exit_status for kind in (ConfigError, DataError, SetupError, CheckpointError, DivergedError, DifferenceError)
)


# Signals of a crash, such as that of a library while it is unloaded.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


# The status of a run whose folder only its script knows.
UNKNOWN = "unknown"


class Summary:
    """The file in which a run reports how it ended. The file of an earlier run is ignored."""

    def __init__(self, path: pathlib.Path, before: tuple[int, int] | None) -> None:
        """`before`: the `stamp_of` the file at `path` before the run was started."""
        self._path = path
        self._before = before

    def status(self) -> str | None:
        """Return `finished`, `stopped`, ..., or None if the run wrote no status."""
        status = self._read().get("status")
        return None if status is None else str(status)

    def stop_signal(self) -> int | None:
        """Return the signal that stopped the run, whichever rank received it, or None."""
        stop = self._read().get("stop")
        name = str(stop.get("signal")) if isinstance(stop, dict) else ""
        return int(signal.Signals[name]) if name in signal.Signals.__members__ else None

    def _read(self) -> dict[str, Any]:
        if stamp_of(self._path) == self._before:
            return {}
        try:
            document = parse_json(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}


@dataclass(frozen=True)
class LaunchOutcome:
    """The exit status of `launch` and the last line of its log. `is_failure`: a restart may succeed."""

    status: int
    text: str
    is_failure: bool = False


def outcome_of(
    ended: Ended,
    run_status: str | None,
    seconds: float,
    stop_signal: int | None = None,
    *,
    status_tells: bool = False,
    is_script: bool = False,
) -> LaunchOutcome:
    """Return the outcome of a run. `run_status` and `stop_signal`: what the run itself wrote in its summary. `is_script`: the
    program of a user, which may do more than train. Pure.

    The exit status is 128 + signal if the run was asked to stop, by a signal to this process, or to ranks alone if they
    saved everything. For a run that had nothing to save yet, the launcher's status may tell (`status_tells`): Open MPI's
    mpirun returns that of the rank that ended first. srun's does not: when a rank fails, srun ends the others by SIGTERM and
    returns 143.
    """
    after = f"after {clock_text(seconds, has_hours=True)}"
    by = next((number for number in STOP_SIGNALS if ended.status == 128 + number), signal.SIGTERM)
    given = ended.signal if ended.signal is not None else stop_signal
    if given is not None:
        by = signal.Signals(given)
    name = "Ctrl-C" if by is signal.SIGINT else by.name
    if ended.status in _REFUSED:  # whatever the summary says: the folder may belong to another job that came first
        kind = "diverged" if ended.status == DivergedError.exit_status else "failed"
        detail = "" if kind == "diverged" else f", exit status {ended.status}"
        return LaunchOutcome(ended.status, f"launch: {kind} {after}{detail}")
    if run_status == "stopped":
        return LaunchOutcome(128 + by, f"launch: stopped by {name} {after}, everything saved")
    is_finished = run_status in ("finished", "finished early")
    if is_script and is_finished and ended.signal is not None:  # what the script does after training is cut off
        return LaunchOutcome(128 + by, f"launch: stopped by {name} {after}, when training had finished")
    if ended.status == 0:
        return LaunchOutcome(0, f"launch: done {after}")
    if is_finished and ended.signal is None and (not is_script or ended.status - 128 in _CRASHES):
        # A library crashed while it was unloaded, or a worker has left that the others could do without.
        return LaunchOutcome(0, f"launch: done {after}; everything was saved when a rank ended with status {ended.status}")
    if run_status == UNKNOWN and (ended.signal is not None or ended.status - 128 in STOP_SIGNALS):
        return LaunchOutcome(128 + by, f"launch: stopped by {name} {after}")
    if status_tells and ended.status - 128 in STOP_SIGNALS:
        return LaunchOutcome(128 + by, f"launch: stopped by {name} {after}, before training began")
    if ended.signal is not None:
        return LaunchOutcome(128 + by, f"launch: stopped by {name} {after}; a checkpoint, if there was one, is intact")
    status = 1 if ended.status - 128 in STOP_SIGNALS else ended.status
    text = f"launch: failed {after}, exit status {ended.status}"
    if is_finished:
        text += ", when training had finished"
    if ended.is_killed and status_tells:
        text += "; the launcher of the ranks was killed: the ranks save their state and end"
    return LaunchOutcome(status, text, is_failure=True)
