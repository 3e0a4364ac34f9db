"""One real Slurm for all tests of this folder: two nodes, which pretend to have 32 cores and 4 GPUs each."""

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
# There is no fabric between these nodes, which Open MPI cannot know: closing libfabric takes each rank a second.
_QUICK = {"OMPI_MCA_btl": "^ofi"}
BUSY = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED"}


class Cluster:
    """Slurm's clients, and power switches of nodes."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def do(self, action: str, *arguments: object, timeout: float = 60.0) -> str:
        """An action of `cluster.sh`, and what it said."""
        argv = [str(_SCRIPT), action, str(self.folder), *map(str, arguments)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, *command: object, cwd: pathlib.Path, env: Mapping[str, str] | None = None) -> str:
        """Output of a client's command; its time is limited, since a broken one may hang."""
        argv = [str(_SCRIPT), "exec", str(self.folder), *map(str, command)]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), **_QUICK, **(env or {})}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd=cwd, env=environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", "-o", job, cwd=self.folder)))

    def wait(self, job: str, timeout: float = 150.0) -> str:
        """The state in which a job ends."""
        return until(
            lambda: None if (state := self.facts(job)["JobState"]) in BUSY else state, timeout, lambda: self.facts(job)
        )


def until(ready: Callable[[], object], timeout: float, explain: Callable[[], object] = lambda: "") -> str:
    """What `ready` gives, as soon as that is something."""
    end = time.monotonic() + timeout
    while not (found := ready()):
        assert time.monotonic() < end, explain()
        time.sleep(0.1)
    return str(found)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """The cluster. Nothing of it is left behind, even if it was not started well."""
    if os.geteuid() != 0 or shutil.which("slurmctld", path=os.environ["PATH"] + ":/usr/sbin") is None:
        pytest.skip("needs root and Slurm; launch/test.sh --slurm installs it on Debian")
    _stop_leftovers()
    folder = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX))
    folder.chmod(0o755)
    cluster = Cluster(folder)
    try:
        cluster.do("start", f"hvds{os.getpid()}")
        yield cluster
    finally:
        cluster.do("stop")
        shutil.rmtree(folder, ignore_errors=True)


def _stop_leftovers() -> None:
    """Clusters carry the process id of their test run; where that has gone, it was interrupted."""
    for folder in pathlib.Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        name = folder / "name"
        owner = re.fullmatch(r"hvds(\d+)\n", name.read_text()) if name.exists() else None
        if owner and not pathlib.Path("/proc", owner[1]).exists():
            Cluster(folder).do("stop")
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def desk(tmp_path: pathlib.Path, slurm: Cluster) -> Iterator[pathlib.Path]:
    """A folder to submit from, with an environment where the scripts expect it. What a test submits leaves nothing running."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    yield tmp_path
    until(lambda: not slurm.do("list"), 30, lambda: slurm.do("list"))
