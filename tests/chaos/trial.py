"""One trial: a run, its fault, how the run ended, what it lost, and whether its books are right in the end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from hvd_async.errors import HvdAsyncError
from hvd_async.runs.event_log import read_events
from tests.chaos.books import EVALUATE_EVERY, faults_of
from tests.chaos.case import STRATEGIES, Case
from tests.chaos.ground import DISK, Ground, ground
from tests.chaos.processes import Processes, hogs, send
from tests.chaos.task import NUM_EPOCHS, Strike
from tests.ranks import kill_marked, short_folder
from tests.trees import changed

SECONDS = 150.0  # generous: only a hang takes so long
_MOST_STARTS = 4
_PATIENCE_SECONDS = 3.0
"""The time after which a stopped worker of `async` counts as dead."""
_PASSING = ("pause", "held lock", "no core")
"""Faults that pass, and must not harm a run."""
_ASKING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
"""Signals that ask a run to save everything and stop."""


@dataclasses.dataclass
class TrialResult:
    """What came of a case: in short (`outcome`), and in numbers; `fault` says what is wrong, if anything is."""

    outcome: str = ""
    fault: str = ""
    status: int | None = None
    starts: int = 1
    seconds: float | None = None
    """From the fault to the next update without the dead, or to the end of the job."""
    detected_seconds: float | None = None
    lost_workers: int = 0
    lost_updates: int = 0
    """Updates that were made and had to be made again."""
    has_trained: bool = False
    """Whether training had begun before the fault."""

    def __str__(self) -> str:
        what = [self.outcome, f"status {self.status}", f"{self.starts} starts" if self.starts > 1 else ""]
        what += [f"{self.seconds:.1f} s" if self.seconds is not None else ""]
        what += [
            f"{self.lost_updates} updates lost" if self.lost_updates else "",
            f"FAULT: {self.fault}" if self.fault else "",
        ]
        return ", ".join(filter(None, what))


class HangError(Exception):
    """Raised when processes do not end in time."""


def run_case(case: Case, folder: pathlib.Path) -> TrialResult:
    """Run `case` in the empty `folder`."""
    mark = uuid.uuid4().hex
    with short_folder() as temporary, ground(folder) as place:
        if case.fault == "full disk" and not place.is_own:
            return TrialResult("skipped: a small disk needs root, unshare and nsenter")
        processes = Processes(case, place, mark, temporary)
        trial = Trial(case, place, processes)
        try:
            trial.run()
        except HangError as error:
            (folder / "hang.txt").write_text(processes.describe())
            trial.result.outcome, trial.result.fault = "hangs", f"{error}; see {folder}/hang.txt"
        finally:
            kill_marked(mark)
            processes.reap()
        left = [f"{temporary}/{each.name}" for each in pathlib.Path(temporary).iterdir()]
        left += [f"/dev/shm/{name}" for name in place.left_in_shared_memory()]
        has_ended_well = trial.result.status == 0
        left = [path for path in left if not pathlib.Path(path).name.startswith(_left_by_others(case, has_ended_well))]
        if left and not trial.result.fault:
            trial.result.fault = f"left behind: {', '.join(sorted(left))}"
        return trial.result


class Trial:
    """A case under way."""

    def __init__(self, case: Case, place: Ground, processes: Processes) -> None:
        self.result = TrialResult()
        self._case = case
        self._place = place
        self._folder = place.folder
        self._processes = processes
        self._output = self._folder / DISK / "run" if case.fault == "full disk" else self._folder / "run"
        self._run = place.path(self._output)
        self._struck: float | None = None

    def run(self) -> None:
        """Run the case to the end, and fill `result`."""
        config, result = self._write(), self.result
        launch = self._processes.start(config, self._folder / "log0.txt")
        self._strike(launch)
        result.status = self._end_of(launch)
        ended = time.time()
        self._judge(ended)
        while self._status() != "finished":
            if result.starts == _MOST_STARTS:
                return self._blame(f"has not finished after {result.starts} starts")
            version = self._version()
            again = self._processes.start(config, self._folder / f"log{result.starts}.txt", "--auto-resume")
            status = self._end_of(again)
            if result.starts == 1:
                result.lost_updates = version - self._resumed_at()
            result.starts += 1
            if status != 0:
                return self._blame(f"start {result.starts}, with --auto-resume, ended with status {status}")
        if result.starts > 1:
            self._judge_loss()
        for fault in faults_of(self._run):
            self._blame(fault)

    # --- The fault. ---------------------------------------------------------------------------------------------------

    def _write(self) -> pathlib.Path:
        """Write the configuration, and what a rank is to do to itself."""
        case, folder = self._case, self._folder
        tree: dict[str, Any] = {
            "output": str(self._output),
            "task": {"factory": "tests.chaos.task:make_task", "options": {"folder": str(folder)}},
            "training": {
                "epochs": NUM_EPOCHS,
                "checkpoint_every": case.checkpoint_every,
                "hash_every": 4,
                "device": "cpu",
                "threads": 1,
                "tensorboard": False,
            },
            "strategy": {
                "worker_timeout_seconds": _PATIENCE_SECONDS if case.is_async else 10.0,
                "store_timeout_seconds": 15.0,
                "stop_timeout_seconds": 20.0,
            },
            "emulation": {"seconds": 0.12},
            "validation": {"every": EVALUATE_EVERY, "when": "during" if case.during else "after"},
        }
        if case.joins:
            tree["strategy"]["max_workers"] = case.num_workers + 1
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump(changed(tree, STRATEGIES[case.strategy])))
        moment = case.moment
        if moment.phase == "point":
            first = {"worker": case.num_shards}.get(case.target, int(case.target == "shard"))
            rank = first + (int(case.index * case.num_workers) if case.target == "worker" else 0)
            strike = Strike(rank, case.fault, case.pause_seconds, moment.point, moment.call, moment.access)
            (folder / "strike.json").write_text(json.dumps(dataclasses.asdict(strike)))
        return path

    def _strike(self, launch: subprocess.Popen[bytes]) -> None:
        """Wait for the moment of the fault, and cause it."""
        case, began = self._case, time.time()
        if case.joins and case.moment.phase != "start":
            while launch.poll() is None and self._note("started") is None:
                time.sleep(0.02)  # only a file tells
            if launch.poll() is None:
                self._processes.join(self._output, self._folder / "join.txt")
        if case.moment.phase == "point":
            return  # the rank itself does
        is_early = case.moment.phase == "start" and case.target != "machine"
        while is_early and launch.poll() is None and not self._processes.targets(launch.pid):
            time.sleep(0.1)  # launch tells nobody when it has started its ranks
        ready = time.time()
        while launch.poll() is None and not self._is_time(ready):
            time.sleep(0.01)  # the moment is random, and what it depends on is only visible in files
            if time.time() - began > SECONDS:
                raise HangError("its moment does not come")
        if launch.poll() is not None:
            return
        with contextlib.ExitStack() as stack:
            if case.target == "machine":
                self._struck = time.time()
                stack.enter_context(hogs(self._processes.mark) if case.fault == "no core" else self._place.filled())
                self._pause(launch)
                return
            targets = self._processes.targets(launch.pid)
            number = signal.SIGSTOP if case.fault == "pause" else signal.Signals[case.fault]
            now = time.time()
            if send(targets, number):
                self._struck = now
            if case.fault == "pause":
                self._pause(launch)
                send(targets, signal.SIGCONT)

    def _pause(self, launch: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            launch.wait(self._case.pause_seconds)

    def _is_time(self, ready: float) -> bool:
        """Whether the moment has come; `ready`: when the target was there."""
        moment = self._case.moment
        if moment.phase == "start":
            since: float | None = ready
        elif moment.phase == "end":
            since = time.time() if self._status() == "finished" else None
        else:
            since = self._note("started" if moment.phase == "training" else "measuring")
        return since is not None and time.time() >= since + moment.seconds

    def _end_of(self, launch: subprocess.Popen[bytes]) -> int:
        """Return the exit status of `launch`, when all its processes have ended by themselves."""
        deadline = time.monotonic() + SECONDS
        try:
            status = launch.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise HangError(f"start {self.result.starts} does not end") from None
        while living := self._processes.living():
            if time.monotonic() > deadline:
                raise HangError(f"processes outlive start {self.result.starts}: {living}")
            time.sleep(0.1)  # they are no children of this process
        return status

    # --- The judgement. -----------------------------------------------------------------------------------------------

    def _judge(self, ended: float) -> None:
        """Note how the first start ended, and blame it if another end was promised."""
        case, result = self._case, self.result
        struck = self._struck = self._struck or self._note("struck")
        events, started = list(self._events()), self._note("started")
        has_ended_well = self._status() == "finished" and result.status == 0
        lost = [event for event in events if event["event"] == "lost"]
        result.lost_workers = len(lost)
        if struck is None:
            result.outcome = "too late"
            if not has_ended_well:
                self._blame(f"without a fault: ends with status {result.status}, {self._status() or 'no summary'}")
            return
        result.has_trained = started is not None and started < struck
        result.seconds = ended - struck
        if not has_ended_well:
            is_salvaged = "is saved from its memory" in (self._folder / "log0.txt").read_text(errors="replace")
            result.outcome = "salvaged" if is_salvaged else "saved" if self._status() == "stopped" else "ends"
        elif lost and started is not None:
            result.outcome = "goes on"
            result.detected_seconds = started + lost[0]["seconds"] - struck
            later = [each for each in events[events.index(lost[-1]) :] if each["event"] == "update"]
            result.seconds = started + later[0]["seconds"] - struck if later else None
        else:
            result.outcome = "finishes"
        is_over = started is not None and struck > started + _last_update(events)
        # After training all ranks evaluate together: an exception ends the job, and so does a rank that ends by itself, of which
        # MPI never learns.
        is_excused = is_over and case.fault in ("exit", "exception")
        is_too_long = (
            case.fault == "pause" and case.pause_seconds > _PATIENCE_SECONDS and case.is_async and not case.outlives
        )
        is_promised = (case.kills_workers and not is_excused) or (case.fault in _PASSING and not is_too_long)
        if result.has_trained and is_promised and not has_ended_well:
            self._blame(f"ends with status {result.status}, {self._status() or 'no summary'}, expected to go on")
        if result.status == 0 and not has_ended_well:
            self._blame(f"exit status 0, and {self._status() or 'no summary'}")
        if case.kills_workers and has_ended_well:
            self._judge_lost_workers(events, started, struck)

    def _judge_lost_workers(self, events: list[dict[str, Any]], started: float | None, struck: float) -> None:
        """Check who counts as lost in the log, and in the last line."""
        number = 2 if self._case.target == "two workers" else 1
        is_during = started is not None and struck < started + _last_update(events) - 0.2
        found = self.result.lost_workers
        if found > number or (is_during and found != number):
            self._blame(f"{found} workers count as lost, expected {number}")
        words = f", {found} worker{'s' if found > 1 else ''} lost on the way"
        if found and words not in (self._folder / "log0.txt").read_text(errors="replace"):
            self._blame(f"the last line does not say {words!r}")

    def _judge_loss(self) -> None:
        """Check that nothing is lost that was to be saved: of `async` no update, of others none where it was asked to stop."""
        case, result = self._case, self.result
        is_asked = case.fault in _ASKING and case.target != "mpirun"
        if result.has_trained and (is_asked or case.is_async) and result.lost_updates > 0:
            self._blame(f"loses {result.lost_updates} updates, expected none")

    def _blame(self, fault: str) -> None:
        self.result.fault = "; ".join(filter(None, (self.result.fault, fault)))

    # --- What can be read. --------------------------------------------------------------------------------------------

    def _status(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads((self._run / "summary.json").read_text())["status"])
        return ""

    def _events(self) -> Iterator[dict[str, Any]]:
        with contextlib.suppress(HvdAsyncError):
            yield from read_events(self._run / "events.jsonl")

    def _resumed_at(self) -> int:
        """Return the version at which the last process of the run began."""
        return int(next((e["version"] for e in reversed(list(self._events())) if e["event"] == "start"), 0))

    def _version(self) -> int:
        """Return the version of the last update that was made, recorded or not."""
        with contextlib.suppress(OSError, ValueError):
            return int((self._folder / "version").read_text())
        return 0

    def _note(self, name: str) -> float | None:
        """Return the time that a rank noted; None if it has not."""
        with contextlib.suppress(OSError, ValueError):
            return float((self._folder / name).read_text())
        return None


def _left_by_others(case: Case, has_ended_well: bool) -> tuple[str, ...]:
    """Return how the names of files begin that libraries leave behind."""
    if (
        case.fault == "SIGSTOP" and not has_ended_well
    ):  # mpirun does not wait for the end of a stopped rank, whose files then stay
        return ("torchinductor_", "ompi.")
    if (case.target, case.fault) != ("mpirun", "SIGKILL"):
        return ("torchinductor_",)
    # A killed mpirun cleans nothing up, and ranks that lose it while MPI starts end by MPI's hand.
    return ("torchinductor_", "ompi.") + (("sm_segment.",) if case.moment.phase == "start" else ())


def _last_update(events: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds of training at the last update in the log."""
    return float(max((event["seconds"] for event in events if event["event"] == "update"), default=0.0))
