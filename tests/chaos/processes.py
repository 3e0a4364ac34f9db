"""The processes of a case: how they are started, found by their roles, and looked into when they hang."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from tests.chaos.case import Case
from tests.chaos.ground import Ground
from tests.chaos.task import ENVIRONMENT
from tests.ranks import MARK, pids_marked

ROOT = pathlib.Path(__file__).parents[2]
_REAP_SECONDS = 30.0
_LAUNCHERS = ("mpirun", "prterun")


class Processes:
    """All processes of a case, which inherit its `mark`. `temporary` is their folder for temporary files."""

    def __init__(self, case: Case, ground: Ground, mark: str, temporary: str) -> None:
        self.mark = mark
        self._case = case
        self._ground = ground
        self._temporary = temporary
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, config: pathlib.Path, log: pathlib.Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `hvd-async launch`, whose output goes to `log`, once: the trial starts a run again itself."""
        respawn = ("--respawn", "2") if self._case.respawns else ()
        workers = ("--workers", str(self._case.num_workers))
        # A rank of it may strike itself.
        return self._start(
            {ENVIRONMENT: "1"}, ("launch", str(config), "--restarts", "0", *workers, *respawn, *arguments), log
        )

    def join(self, run: pathlib.Path, log: pathlib.Path) -> None:
        """Have one more worker join the run in the folder `run`."""
        self._start({}, ("join", str(run), "--trust-task"), log)

    def _start(self, more: Mapping[str, str], arguments: Sequence[str], log: pathlib.Path) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), MARK: self.mark, "TMPDIR": self._temporary, **more}
        command = [*self._ground.enter, sys.executable, "-m", "hvd_async"]
        with log.open("ab") as file:
            started = subprocess.Popen(
                [*command, *arguments],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._started.append(started)
        return started

    def reap(self) -> None:
        """Wait for all that were started, which have ended or were killed."""
        for started in self._started:
            started.wait(_REAP_SECONDS)

    def living(self) -> list[int]:
        """Return the processes that live."""
        return sorted(pids_marked(self.mark))

    def targets(self, launch: int) -> list[int]:
        """Return the processes that are the target of the case; none if there are none yet, or any more."""
        case, ranks = self._case, self.ranks(launch)
        shards, index = case.num_shards, case.index
        workers = [process for rank, process in ranks.items() if rank >= shards]
        if case.target == "worker":
            return [workers[int(index * len(workers))]] if workers else []
        if case.target == "two workers":
            left = int(index * len(workers))
            return [process for number, process in enumerate(workers) if number != left]
        return {
            "store": [process for rank, process in ranks.items() if rank == 0],
            "shard": [process for rank, process in ranks.items() if rank == 1],
            "all ranks": list(ranks.values()),
            "mpirun": [process for process in self.living() if _program(process)[:1] and _is_launcher(process)],
            "launch": [launch],
        }[case.target]

    def ranks(self, launch: int) -> dict[int, int]:
        """Return the process of each rank that lives, by rank."""
        parents = {launch} if self._case.strategy == "single" else {each for each in self.living() if _is_launcher(each)}
        found = {}
        for process in self.living():
            if _parent(process) in parents and "train" in _program(process):
                found[_rank(process)] = process
        return dict(sorted(found.items()))

    def describe(self) -> str:
        """Return what each living process is and does, as far as py-spy can be found."""
        lines = []
        for process in self.living():
            with contextlib.suppress(OSError):
                state = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
                lines.append(f"{process} {state} rank {_rank(process)} {' '.join(_program(process))}")
            if (spy := shutil.which("py-spy")) is not None and "python" in " ".join(_program(process)[:1]):
                dumped = subprocess.run(
                    (spy, "dump", "--pid", str(process)), capture_output=True, text=True, timeout=60, check=False
                )
                lines += [dumped.stdout, dumped.stderr]
        return "\n".join(lines)


def send(processes: list[int], number: signal.Signals) -> bool:
    """Send a signal, and return whether any process received it."""
    sent = False
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
            sent = True
    return sent


@contextlib.contextmanager
def hogs(mark: str) -> Iterator[None]:
    """Keep every core busy, several times over, inside the block; a context manager."""
    environ = {**os.environ, MARK: mark}
    busy = [
        subprocess.Popen((sys.executable, "-S", "-c", "while True: pass"), env=environ)
        for _ in range(3 * len(os.sched_getaffinity(0)))
    ]
    try:
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


def _program(process: int) -> list[str]:
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


def _is_launcher(process: int) -> bool:
    return pathlib.Path((_program(process) or [""])[0]).name in _LAUNCHERS


def _parent(process: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _rank(process: int) -> int:
    """Return the rank of a process; 0 without a launcher that numbers ranks."""
    with contextlib.suppress(OSError):
        for variable in pathlib.Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
            name, _, value = variable.partition(b"=")
            if name in (b"PMIX_RANK", b"PMI_RANK"):
                return int(value)
    return 0
