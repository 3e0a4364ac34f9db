"""Real MPI processes for tests: under the mpirun of this environment, on one host or two, with a strict time limit."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from hvd_async.cluster.hosts import Host
from hvd_async.cluster.mpi_family import MpiFamily, detect_mpi
from hvd_async.errors import SetupError
from hvd_async.launcher import LaunchOptions, RankLayout, mpirun_command
from tests.forked_ranks.keeper import PROGRAMS, KeeperStarter

TWO_HOSTS = pathlib.Path(__file__).parent / "two_hosts"
# Set in every process of a job, on both hosts, so that the time limit reaches those that left mpirun's process group.
MARK = "HVD_ASYNC_TEST_JOB"
_GRACE_SECONDS = 2.0
# Prefixes of variables that are read when torch is loaded.
_READ_EARLY = ("OMP_", "GOMP_", "MKL_", "KMP_")


@dataclasses.dataclass(frozen=True)
class Completed:
    """The result of a job. A job killed at its time limit has `timed_out` set and a nonzero return code."""

    returncode: int
    stdout: str
    stderr: str
    timed_out: bool = False

    def __str__(self) -> str:
        limit = " (killed at the time limit)" if self.timed_out else ""
        return f"exit status {self.returncode}{limit}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"

    def check(self) -> Completed:
        """Return this result, or fail the test with everything the job printed."""
        if self.returncode != 0:
            raise AssertionError(str(self))
        return self


@functools.cache
def mpirun_path() -> str | None:
    """Return the mpirun of this environment, or else of the system."""
    beside_python = pathlib.Path(sys.prefix) / "bin" / "mpirun"
    return str(beside_python) if beside_python.exists() else shutil.which("mpirun")


@functools.cache
def mpi_family() -> MpiFamily | None:
    """Return the family of `mpirun_path`; None without a known MPI."""
    path = mpirun_path()
    try:
        return detect_mpi(path) if path else None
    except SetupError:
        return None


def run_ranks(
    num_ranks: int,
    program: str | pathlib.Path | Sequence[str],
    *args: str,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
    hosts: Sequence[str] = (),
    mpirun_args: Sequence[str] = (),
    outlives_mpirun: bool = False,
) -> Completed:
    """Run a Python program in `num_ranks` processes under mpirun, and kill all of them `timeout` seconds later.

    `program` is a script, a module's dotted name, or a list of Python's own arguments such as `["-c", text]`. `hosts`
    are names from the fixture `two_hosts`, filled evenly and in order: of 3 ranks on 2 hosts, 0 and 1 are on the first.
    `env` is added to the environment of every rank, `mpirun_args` to mpirun's arguments. Ranks of a module in
    `PROGRAMS` are forked from a process that has loaded their imports, unless they are to outlive mpirun.
    """
    family, path = mpi_family(), mpirun_path()
    assert family is not None and path is not None, "no mpirun in this environment; see launch/setup.sh"
    slots = -(-num_ranks // len(hosts)) if hosts else 0
    agent = _agent_arguments(family) if hosts else ()
    options = LaunchOptions(
        mpi=family,
        mpirun=path,
        as_root=os.geteuid() == 0,
        extra=(*agent, *mpirun_args),
    )
    # One core: test machines are small and shared, so waiting ranks must yield.
    layout = RankLayout.of_ranks(num_ranks, 1, tuple(Host(name, slots) for name in hosts))
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path(), **(env or {})}
    if hosts and family == "openmpi":
        variables["OMPI_MCA_btl"] = "^ofi"  # there is no fabric between the hosts, and closing libfabric takes a second
    first_host = (str(TWO_HOSTS / "onhost.sh"), hosts[0]) if hosts else ()
    is_forked = program in PROGRAMS and not outlives_mpirun and not any(name.startswith(_READ_EARLY) for name in env or ())
    with keeper_starter().keeper() if is_forked else contextlib.nullcontext([sys.executable]) as python:
        words = (str(program),) if is_forked else _python_arguments(program)
        command = mpirun_command((*python, *words, *args), layout, options, variables)
        environ = {**os.environ, **command.environment}
        return run_limited((*first_host, *command.argv), environ, timeout, outlives=outlives_mpirun)


@functools.cache
def keeper_starter() -> KeeperStarter:
    """Return the process that starts the keepers of forked ranks; it ends with this process."""
    # Libraries read these variables when they are loaded; the values are those that `run_ranks` sets for every job.
    early = {"OMP_NUM_THREADS": "1", "UCX_LOG_LEVEL": "error", "PYTHONPATH": _python_path()}
    made = KeeperStarter({**os.environ, **early})
    atexit.register(made.close)
    return made


def run_limited(
    argv: Sequence[str],
    environ: Mapping[str, str],
    timeout: float,
    cwd: pathlib.Path | None = None,
    outlives: bool = False,
) -> Completed:
    """Run `argv`; at the time limit kill it and all its descendants, in whatever group or host they are, and keep the
    output.

    Descendants are killed when `argv` has ended, unless `outlives` is set: then they may end by themselves within the
    limit.
    """
    deadline = time.monotonic() + timeout
    mark = uuid.uuid4().hex
    # Output goes to files: a process that outlived the job would hold a pipe open, and reading it would hang.
    with contextlib.ExitStack() as stack:
        stdout, stderr = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        own = {MARK: mark}
        if outlives:
            own["TMPDIR"] = stack.enter_context(short_folder())
        job = subprocess.Popen(
            argv,
            env={**environ, **own},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        timed_out = False
        try:
            returncode = job.wait(timeout)
            while outlives and not timed_out and any(pids_marked(mark)):
                timed_out = time.monotonic() > deadline
                time.sleep(0.05)  # there is no notification when a process that is not our child ends
        except subprocess.TimeoutExpired:
            timed_out = True
            # On SIGTERM, Open MPI's mpirun kills its ranks itself and removes their segments from /dev/shm.
            job.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(_GRACE_SECONDS)
        finally:
            kill_marked(mark)
            job.wait()
        return Completed(124 if timed_out else returncode, _text(stdout), _text(stderr), timed_out)


def short_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for temporary files. A killed mpirun leaves some behind, over which a later mpirun with the same
    process id would stumble; and its sockets need a short path.
    """
    return tempfile.TemporaryDirectory(prefix="hvdt", ignore_cleanup_errors=True)


def _python_arguments(program: str | pathlib.Path | Sequence[str]) -> tuple[str, ...]:
    if isinstance(program, str) and not program.endswith(".py"):
        return ("-m", program)
    return (str(program),) if isinstance(program, (str, pathlib.Path)) else tuple(program)


def _python_path() -> str:
    """Return a path that begins with this checkout: a rank imports the package beside these tests, installed or not."""
    root = str(pathlib.Path(__file__).resolve().parent.parent)
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))


def _agent_arguments(family: MpiFamily) -> tuple[str, ...]:
    agent = str(TWO_HOSTS / "agent.sh")
    return ("--prtemca", "plm_ssh_agent", agent) if family == "openmpi" else ("-launcher", "ssh", "-launcher-exec", agent)


def kill_marked(mark: str) -> None:
    """Kill every process that inherited `mark`, until none is left: processes forked meanwhile have inherited it too."""
    while pids := list(pids_marked(mark)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def pids_marked(mark: str) -> Iterator[int]:
    wanted = f"{MARK}={mark}".encode()
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit():
            # A process may end while it is read; a dead process that is not reaped yet has no environment.
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


@contextlib.contextmanager
def cut(host: str) -> Iterator[None]:
    """Cut the link of one of `two_hosts` inside the block."""
    link = ("ip", "-n", host, "link", "set", "eth0")
    subprocess.run([*link, "down"], check=True)
    try:
        yield
    finally:
        subprocess.run([*link, "up"], check=True)
