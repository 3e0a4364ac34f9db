"""How a run ended, from what its launcher says and what the run itself wrote down."""

from __future__ import annotations

import pathlib
import signal
from dataclasses import dataclass

from hvd_async.json_text import parse_json
from hvd_async.launcher.running import Ended

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Summary:
    """The file in which a run says how it ended; of an earlier one it does not count."""

    def __init__(self, path: pathlib.Path) -> None:
        """To be made before the run is started."""
        self._path = path
        self._before = self._stamp()

    def how(self) -> str | None:
        """`finished`, `stopped`, ...; None if the run wrote none."""
        if self._stamp() == self._before:
            return None
        try:
            return str(parse_json(self._path.read_bytes())["how"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino


@dataclass(frozen=True)
class Outcome:
    """What a launcher of ours ends with: its exit status, and the last line of its log."""

    status: int
    text: str


def outcome_of(ended: Ended, how: str | None, seconds: float) -> Outcome:
    """128 + signal if the run was asked to stop: by a signal that came to us, or to ranks alone and they saved everything. Pure.

    The status alone does not tell: when a rank fails, srun ends the others by SIGTERM, and gives 143.
    """
    minutes, rest = divmod(round(seconds), 60)
    after = f"after {minutes // 60}:{minutes % 60:02d}:{rest:02d}"
    if ended.status == 0:
        return Outcome(0, f"launch: done {after}")
    by = next((number for number in _STOPPING if ended.status == 128 + number), signal.SIGTERM)
    if ended.signal is not None:
        by = signal.Signals(ended.signal)
    if how == "stopped":
        return Outcome(128 + by, f"launch: stopped by {by.name} {after}, everything saved")
    if ended.signal is not None:
        return Outcome(128 + by, f"launch: stopped by {by.name} {after}; what was saved before is whole")
    status = 1 if ended.status - 128 in _STOPPING else ended.status
    return Outcome(status, f"launch: failed {after}, exit status {ended.status}")
