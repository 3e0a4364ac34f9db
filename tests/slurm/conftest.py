"""A real Slurm for all tests of this folder: two nodes that pretend to have 32 cores and 4 GPUs each."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

ROOT = pathlib.Path(__file__).parents[2]
_SCRIPT = pathlib.Path(__file__).with_name("cluster.sh")
_PREFIX = "hvd-async-slurm-"
# Open MPI cannot know that there is no fabric between these nodes: closing libfabric takes each rank a second.
_QUICK = {"OMPI_MCA_btl": "^ofi"}
BUSY = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED"}


class SlurmCluster:
    """Slurm's client commands, and power switches of the nodes."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def do(self, action: str, *arguments: object, timeout: float = 60.0) -> str:
        """Run an action of `cluster.sh`, and return its output."""
        argv = [str(_SCRIPT), action, str(self.folder), *map(str, arguments)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, *command: object, cwd: pathlib.Path, env: Mapping[str, str] | None = None) -> str:
        """Run a client command, and return its output; its time is limited, since a broken one may hang."""
        argv = [str(_SCRIPT), "exec", str(self.folder), *map(str, command)]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), **_QUICK, **(env or {})}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=cwd, env=environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def facts(self, job: str) -> dict[str, str]:
        """Return the facts that Slurm reports about a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", "-o", job, cwd=self.folder)))

    def wait(self, job: str, timeout: float = 150.0) -> str:
        """Wait for a job to end, and return its final state."""
        return until(
            lambda: None if (state := self.facts(job)["JobState"]) in BUSY else state, timeout, lambda: self.facts(job)
        )


def until(ready: Callable[[], object], timeout: float, explain: Callable[[], object] = lambda: "") -> str:
    """Wait until `ready` returns something true, and return that."""
    end = time.monotonic() + timeout
    while not (found := ready()):
        assert time.monotonic() < end, explain()
        time.sleep(0.1)
    return str(found)


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """The cluster. It is removed completely, even if its start failed."""
    if os.geteuid() != 0 or shutil.which("slurmctld", path=os.environ["PATH"] + ":/usr/sbin") is None:
        pytest.skip("needs root and Slurm; launch/test.sh --slurm installs it on Debian")
    _stop_leftovers()
    folder = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX))
    folder.chmod(0o755)
    cluster = SlurmCluster(folder)
    try:
        cluster.do("start", f"hvds{os.getpid()}")
        yield cluster
    finally:
        cluster.do("stop")
        shutil.rmtree(folder, ignore_errors=True)


def _stop_leftovers() -> None:
    """Stop the clusters of test runs that were interrupted: a cluster carries the process id of its test run."""
    for folder in pathlib.Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        name = folder / "name"
        owner = re.fullmatch(r"hvds(\d+)\n", name.read_text()) if name.exists() else None
        if owner and not pathlib.Path("/proc", owner[1]).exists():
            SlurmCluster(folder).do("stop")
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def desk(tmp_path: pathlib.Path, slurm: SlurmCluster) -> Iterator[pathlib.Path]:
    """A folder to submit jobs from, with an environment where the scripts expect it. Waits until no job of the test is
    left.
    """
    (tmp_path / ".venv").symlink_to(sys.prefix)
    yield tmp_path
    until(lambda: not slurm.do("list"), 30, lambda: slurm.do("list"))
