"""Kill processes of real runs at random, and check that nothing is lost.

    python -m tests.mpi.killing [--seed 1] [--count 200] [--folder FOLDER]

Every case depends only on the seed and its number, which decide the strategy, the processes to signal, the signal, and
the moment: while ranks start, at some update, or at some measurement after training. Then the run is started again with
--auto-resume until it has finished; its log, its measurements and its folder are checked, and it is replayed. Every
failure is printed with the number of its case, so that the case can be repeated (--first N --count 1).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import Any

from hvd_async.errors import HvdAsyncError
from hvd_async.replay.replay import ReplayOptions, replay
from hvd_async.runs.event_log import read_events
from hvd_async.tasks.registry import make_task
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.mpi.runs import summary_of, write_config
from tests.ranks import MARK, kill_marked, pids_marked, short_folder

ROOT = pathlib.Path(__file__).parents[2]
STRATEGIES: dict[str, dict[str, Any]] = {
    "async N=1": {"strategy": {"kind": "async", "arrivals_per_update": 1}},
    "async N=workers": {"strategy": {"kind": "async"}},
    "async lock-step": {"strategy": {"kind": "async", "lockstep": True}},
    "async, overlap": {"strategy": {"kind": "async"}, "push": {"overlap": True}},
    "async, colocated": {"strategy": {"kind": "async", "placement": "colocated"}},
    "async, node sum": {"strategy": {"kind": "async"}, "push": {"node_sum": True}},
    "async, 2 shards": {"strategy": {"kind": "async"}, "store": {"shards": 2}, "model": {"width": 32}},
    "horovod": {"strategy": {"kind": "horovod"}},
    "ddp": {"strategy": {"kind": "ddp"}},
    "single": {"strategy": {"kind": "single"}},
}
SIGNALS = {
    "launch": (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL),
    "mpirun": (signal.SIGKILL, signal.SIGUSR1, signal.SIGTERM),
    "rank": (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGUSR1),
    "all ranks": (signal.SIGKILL,),
}
SECONDS = 120.0  # generous: only a hang takes so long


@dataclasses.dataclass(frozen=True)
class Case:
    """A signal to one run. `at`: seconds after the start or after the beginning of training, or a number of measurements."""

    number: int
    strategy: str
    during: bool
    checkpoint_every: int
    target: str
    signal: signal.Signals
    phase: str
    at: float
    rank: float

    @classmethod
    def draw(cls, seed: int, number: int) -> Case:
        """Draw case `number`."""
        draw = random.Random(f"{seed} {number}")
        target = draw.choice(list(SIGNALS))
        phase = draw.choice(("start", "training", "training", "measuring", "measuring"))
        during = phase != "measuring" and draw.random() < 0.3
        at = {"start": 5.0 * draw.random(), "training": 4.0 * draw.random(), "measuring": draw.randrange(8)}[phase]
        return cls(
            number,
            draw.choice(list(STRATEGIES)),
            during,
            draw.choice((0, 0, 2, 5)),
            target,
            draw.choice(SIGNALS[target]),
            phase,
            at,
            draw.random(),
        )

    def __str__(self) -> str:
        what, when = f"{self.signal.name} to {self.target}", f"{self.phase} {self.at:.3g}"
        return f"{self.number}: {self.strategy}, checkpoint_every {self.checkpoint_every}: {what}, {when}"


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """The result of a case: whether the signal found the run alive, its exit status, the number of starts, and faults,
    if any.
    """

    fired: bool
    status: int
    starts: int
    fault: str = ""


def run_case(case: Case, folder: pathlib.Path) -> CaseResult:
    """Run `case` in the empty `folder`."""
    write_corpus(folder / "text", train=200, validation=8, test=8)
    sections = json.loads(json.dumps(STRATEGIES[case.strategy]))
    training = {"weight": 2000, "checkpoint_every": case.checkpoint_every, "threads": 1, "hash_every": 4}
    validation = {"every": 3, "when": "during" if case.during else "after"}
    path = write_config(folder, emulation={"seconds": 0.2}, training=training, validation=validation, **sections)
    mark = uuid.uuid4().hex
    with short_folder() as temporary:
        return _run_case(case, path, CaseProcesses(mark, temporary))


@dataclasses.dataclass(frozen=True)
class CaseProcesses:
    """Values that all processes of a case inherit: the mark by which they are found, and the folder for temporary files."""

    mark: str
    temporary: str


def _run_case(case: Case, path: pathlib.Path, processes: CaseProcesses) -> CaseResult:
    folder, mark = path.parent, processes.mark
    try:
        fired, status = _killed(case, path, processes)
        starts = 1
        while not _has_finished(folder / "run"):
            if starts == 4:
                return CaseResult(fired, status, starts, "has not finished after three more starts")
            again = _start(path, processes, folder / f"log{starts}.txt", "--auto-resume")
            try:
                code = again.wait(SECONDS)
            except subprocess.TimeoutExpired:
                return CaseResult(fired, status, starts, "a start with --auto-resume does not end")
            starts += 1
            if code != 0:
                return CaseResult(fired, status, starts, f"a start with --auto-resume ended with status {code}")
        return CaseResult(fired, status, starts, "; ".join(_faults(folder / "run", path)))
    except subprocess.TimeoutExpired:
        return CaseResult(True, -1, 1, f"does not end: {sorted(pids_marked(mark))}")
    finally:
        kill_marked(mark)


def _start(path: pathlib.Path, processes: CaseProcesses, log: pathlib.Path, *arguments: str) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), MARK: processes.mark, "TMPDIR": processes.temporary}
    command = [sys.executable, "-m", "hvd_async", "launch", str(path), "--workers", _workers(path), *arguments]
    with log.open("ab") as file:
        return subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )


def _workers(path: pathlib.Path) -> str:
    return "1" if "kind: single" in path.read_text() else "2"


def _killed(case: Case, path: pathlib.Path, processes: CaseProcesses) -> tuple[bool, int]:
    """Start the run, signal the processes of the case, and wait until all processes have ended. Return whether the
    signal found the run alive, and the exit status of `launch`.
    """
    log, run = path.parent / "log0.txt", path.parent / "run"
    launch, mark = _start(path, processes, log), processes.mark
    began = time.monotonic()
    while launch.poll() is None and not _is_time(case, run, time.monotonic() - began):
        time.sleep(0.005)  # the moment is random, and what it depends on is only visible in files
        if time.monotonic() - began > SECONDS:
            raise subprocess.TimeoutExpired("launch", SECONDS)
    fired = _send(case, launch, mark)
    status = launch.wait(SECONDS)
    deadline = time.monotonic() + SECONDS
    while any(pids_marked(mark)):  # processes that outlive launch must end by themselves
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired("ranks", SECONDS)
        time.sleep(0.1)
    return fired, status


def _is_time(case: Case, run: pathlib.Path, seconds: float) -> bool:
    if case.phase == "start":
        return seconds >= case.at
    if case.phase == "training":
        return _has_begun(run) and (time.time() - (run / "config.yaml").stat().st_mtime >= case.at or _is_over(run))
    data = _checkpoint_data(run)
    measured = len(json.loads(data)["recorder"]["measurements"]) if data else 0
    return (measured >= case.at and bool(measured)) or _is_over(run)


def _events(run: pathlib.Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(HvdAsyncError):
        yield from read_events(run / "events.jsonl")


def _checkpoint_data(run: pathlib.Path) -> str:
    """Return the data of the latest checkpoint, or an empty string if there is none; the log is written too rarely."""
    for path in sorted((run / "checkpoints").glob("v*/data.json"), reverse=True):
        with contextlib.suppress(OSError):
            return path.read_text().partition("\n")[2]
    return ""


def _has_begun(run: pathlib.Path) -> bool:
    return (run / "events.jsonl").exists()


def _is_over(run: pathlib.Path) -> bool:
    return (run / "summary.json").exists()


def _send(case: Case, launch: subprocess.Popen[bytes], mark: str) -> bool:
    """Send the signal, and return whether any process received it."""
    programs = {pid: _program(pid) for pid in pids_marked(mark)}
    ranks = sorted(pid for pid, program in programs.items() if " train " in program and "mpirun" not in program.split()[0])
    targets = {
        "launch": [launch.pid],
        "mpirun": [
            pid
            for pid, program in programs.items()
            if "mpirun" in program.split(" ")[0] or "prterun" in program.split(" ")[0]
        ],
        "rank": [ranks[int(case.rank * len(ranks))]] if ranks else [],
        "all ranks": ranks,
    }[case.target]
    sent = False
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, case.signal)
            sent = True
    return sent and launch.returncode is None


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") or " "
    return " "


def _has_finished(run: pathlib.Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return bool(summary_of(run)["status"] == "finished")
    return False


def _faults(run: pathlib.Path, path: pathlib.Path) -> Iterator[str]:
    """Yield every difference from a run that was never interrupted."""
    events, summary = list(_events(run)), summary_of(run)
    batches = sorted(event["batch"] for event in events if event["event"] == "arrival")
    if batches != list(range(len(batches))):
        yield f"batches: {batches}"
    versions = [event["version"] for event in events if event["event"] == "update"]
    if versions != list(range(1, len(versions) + 1)) or summary["updates"] != len(versions):
        yield f"versions: {versions}"
    if summary["weight"] < 1900 or summary["pending"]:
        yield f"weight: {summary['weight']}, pending {summary['pending']}"
    measured = sorted(measurement["version"] for measurement in summary["measurements"])
    expected = sorted({*range(3, len(versions) + 1, 3), len(versions)})
    if measured != expected or summary["unmeasured"]:
        yield f"measured: {measured}, expected {expected}; unmeasured: {summary['unmeasured']}"
    if sorted(event["version"] for event in events if event["event"] == "evaluation") != expected:
        yield "evaluations in the log are not those of the summary"
    files = [str(file.relative_to(run)) for file in run.rglob("*") if not file.is_dir()]
    allowed = ("config.yaml", "events.jsonl", "summary.json", ".lock", "checkpoints/v", "models/best/", "models/last/")
    if strange := [name for name in files if not name.startswith(allowed)]:
        yield f"left behind: {strange}"
    if len(list((run / "checkpoints").iterdir())) != 1:
        yield f"checkpoints: {sorted(p.name for p in (run / 'checkpoints').iterdir())}"
    best = json.loads((run / "models/best/meta.json").read_text())
    if best["version"] != summary["best"]["version"]:
        yield f"models/best is of version {best['version']}, expected {summary['best']['version']}"
    if summary["strategy"] in ("horovod", "ddp"):
        return  # the order in which their libraries sum is unknown
    try:
        replay(run, make_task, ReplayOptions(), lambda line: None)
    except HvdAsyncError as error:
        yield f"replay: {error}"


def main() -> int:
    """Run the requested cases, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "killing")
    arguments = parser.parse_args()
    table: collections.Counter[tuple[str, str, str, str]] = collections.Counter()
    num_faults = 0
    for number in range(arguments.first, arguments.first + arguments.count):
        case = Case.draw(arguments.seed, number)
        folder = arguments.folder / f"case{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        result = run_case(case, folder)
        good = "FAULT" if result.fault else "good" if result.fired else "too late"
        print(f"{case}; status {result.status}, starts {result.starts}: {good} {result.fault}", flush=True)
        table[case.target, case.signal.name, case.phase, good] += 1
        num_faults += bool(result.fault)
        if not result.fault:
            shutil.rmtree(folder)
    for (target, name, phase, good), count in sorted(table.items()):
        print(f"{target:10} {name:8} {phase:10} {good:9} {count}")
    print(f"{sum(table.values())} cases, {num_faults} faults")
    return min(1, num_faults)


if __name__ == "__main__":
    sys.exit(main())
