"""The starts of a run by `hvd-async launch`: one, or more while it fails."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from hvd_async.cli.desertion import Desertion
from hvd_async.errors import DataError
from hvd_async.system.standard_streams import tell

if TYPE_CHECKING:
    from hvd_async.cli.holding import StoreKeeper
    from hvd_async.cli.launched_run import LaunchedRun
    from hvd_async.launcher import Begin, LaunchOutcome
    from hvd_async.system.processes import Command

STORE_RESTARTS = 3
"""How often a run is started again whose store has died, if nobody says how often."""
# Added to the time that ranks have to stop: the files that they save may be large.
_PATIENCE_SECONDS = 120.0


def start_until_done(
    launched: LaunchedRun,
    start: Callable[[Begin], LaunchOutcome],
    begin: Begin,
    keeper: StoreKeeper | None,
    restarts: int | None,
) -> int:
    """Start the run `launched`, again up to `restarts` times while it fails, and return the last exit status. None: no more
    often than its store dies, of whose updates none is lost."""
    from hvd_async.system.durations import clock_text

    began, number = time.monotonic(), 0
    run = _Beginning(launched, begin)
    while True:
        number += 1
        outcome = start(run.next_begin())
        saved, goes_on = ("", False) if keeper is None else keeper.save()
        if saved:
            _say(saved)
        limit = restarts if restarts is not None else STORE_RESTARTS if goes_on else 0
        if outcome.is_failure and number <= limit:
            how = "with --auto-resume" if run.has_begun() else "as at first, since the run had not begun"
            _say(f"{outcome.text}; restart {number} of {limit}, {how}")
            continue
        in_all = f"; {number} starts, {clock_text(time.monotonic() - began, has_hours=True)} in all" if number > 1 else ""
        is_open = outcome.is_failure or outcome.text.endswith("before training began")
        _say(outcome.text + in_all + (_way_on(launched) if is_open and run.has_begun() else ""))
        return outcome.status


class _Beginning:
    """Knows whether the run has begun, so that it can go on, and what is in the folder is its own."""

    def __init__(self, launched: LaunchedRun, begin: Begin) -> None:
        self._begin = begin
        self._launched = launched
        self._goes_on = begin in ("resume", "auto-resume")
        self._is_first = True

    def next_begin(self) -> Begin:
        """Return how the ranks are to begin now."""
        begin: Begin = "auto-resume" if not self._is_first and self.has_begun() else self._begin
        self._is_first = False
        return begin

    def has_begun(self) -> bool:
        """Whether ranks have made the folder that of this run."""
        return self._goes_on or self._launched.has_begun()


def _way_on(launched: LaunchedRun) -> str:
    """Return how a run that did not finish goes on, for the end of a line; empty if there is no run."""
    from hvd_async.runs.checkpoint import list_checkpoints

    if (folder := launched.folder) is None:
        return ""
    if saved := list_checkpoints(folder.checkpoints):
        return f"; saved: version {int(saved[-1].name[1:])}, resume with --resume"
    return "; nothing is saved, begin again with --auto-resume" if folder.config.exists() else ""


def start_once(
    launched: LaunchedRun,
    command: Command,
    stop_signal: int | None,
    status_tells: bool,
    keeper: StoreKeeper | None,
    desertion: Desertion | None,
) -> LaunchOutcome:
    """Run `command`, which computes the run `launched`, until it ends, and return its outcome. `status_tells`: as in
    `outcome_of`. `keeper` keeps the store's memory, if there is any; `desertion` finds out that the command waits in vain, if it
    can."""
    from hvd_async.launcher import UNKNOWN, outcome_of, quieted
    from hvd_async.system.processes import Stopping, run_command

    launched.begin()
    _say(command.shell_text())
    began, began_at = time.monotonic(), time.time()

    def is_saving() -> bool:
        return launched.folder is not None and launched.folder.is_being_saved(began_at)

    # Ranks end by themselves when one of them does not answer; if they do not even do that, the launcher ends them.
    strategy = launched.config.strategy
    patience = strategy.stop_timeout_seconds + _PATIENCE_SECONDS
    with quieted(tell) as errors:
        stopping = Stopping(stop_signal, patience, is_saving, strategy.hang_timeout_seconds)
        if desertion is not None:
            stopping = dataclasses.replace(stopping, is_in_vain=desertion.is_found)
        ended = run_command(command, os.environ, stopping, errors)
    seconds = time.monotonic() - began
    if strategy.is_single or (desertion is not None and desertion.is_sure):
        ended = dataclasses.replace(ended, is_killed=False)  # what was killed was the run itself, or has lost its ranks
    is_sure = launched.is_script and not strategy.is_async
    summary = launched.summary
    status = UNKNOWN if summary is None else summary.status()
    if ended.status == 0 and keeper is not None and keeper.is_state_unsaved():
        # Such an mpirun ends well, too, if the store has died, and each other rank has said so.
        ended = dataclasses.replace(ended, status=1)
    elif ended.status == 0 and status is None and not (launched.folder and launched.folder.has_ended()) and not is_sure:
        # An mpirun that keeps the other ranks when one dies ends well even if all of them have died.
        if ended.signal is None:
            _say("launch: all ranks have ended before the run did; their lines above say why, or the system's log")
        ended = dataclasses.replace(ended, status=1)
    elif ended.status == 0 and launched.is_unheard:
        _say("launch: the program has not called hvd_async.init: each of its processes has done the whole work alone")
    stop_signal = None if summary is None else summary.stop_signal()
    return outcome_of(ended, status, seconds, stop_signal, status_tells=status_tells, is_script=launched.is_script)


def _say(line: str) -> None:
    """Print `line`. A closed terminal or a full disk does not end the run."""
    with contextlib.suppress(OSError, DataError):  # reported when the rest of the output is written at exit
        print(line, flush=True)
