"""`hvd-async launch --hosts` for real, over two hosts: started by mpirun and horovodrun over ssh, whose environment is
bare.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.comparison.processes import until
from tests.mpi.runs import events_of, losses_of, summary_of, write_config
from tests.ranks import TWO_HOSTS, Completed, cut, mpi_family, run_limited

pytestmark = pytest.mark.mpi

SYNCHRONOUS: Mapping[str, Mapping[str, Any]] = {"metrics": [], "training": {"weight": 1000}}


def launch(home: pathlib.Path, path: pathlib.Path, *arguments: str, on: str | None = None) -> Completed:
    """Run the user's command on this machine, or on the host `on`, from which `ssh` reaches the other one."""
    environ = {
        **os.environ,
        "PATH": os.pathsep.join([str(TWO_HOSTS / "bin"), os.environ["PATH"]]),
        "HOME": str(home),  # horovodrun caches there what it finds out about hosts
        "OMPI_MCA_mpi_yield_when_idle": "1",  # these hosts share their cores, which no launcher can know
        "OMPI_MCA_btl": "^ofi",  # there is no fabric between them: closing libfabric takes a second
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
    }
    first = () if on is None else (str(TWO_HOSTS / "onhost.sh"), on)
    return run_limited((*first, sys.executable, "-m", "hvd_async", "launch", str(path), *arguments), environ, timeout=120)


def hosts_of(done: Completed) -> list[str]:
    """Return the host of every rank, as the run printed it."""
    places = re.findall(r"rank (\d+) on (\S+): ", done.stdout)
    assert [int(rank) for rank, _ in places] == list(range(len(places))), str(done)
    return [host for _, host in places]


def skip_unless_it_runs_here(launcher: str) -> None:
    if launcher.startswith("horovodrun"):
        pytest.importorskip("horovod", reason="Horovod is not installed; see launch/setup.sh")
    if launcher == "horovodrun-mpi" and mpi_family() != "openmpi":
        pytest.skip("horovodrun --mpi supports only Open MPI")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def losses_of_one_host(tmp_path_factory: pytest.TempPathFactory, home: pathlib.Path) -> list[float]:
    """Return the training losses of two workers on this machine."""
    folder = tmp_path_factory.mktemp("one")
    write_corpus(folder / "text", train=200, validation=8, test=8)
    launch(home, write_config(folder, strategy={"kind": "ddp"}, **SYNCHRONOUS), "--workers", "2").check()
    return losses_of(folder / "run")


@pytest.mark.parametrize(("launcher", "placement"), [("mpirun", "dedicated"), ("horovodrun-mpi", "colocated")])
def test_the_store_serves_workers_of_both_hosts(
    tmp_path: pathlib.Path, home: pathlib.Path, two_hosts: tuple[str, str], launcher: str, placement: str
) -> None:
    skip_unless_it_runs_here(launcher)
    first, second = two_hosts
    write_corpus(tmp_path / "text", train=200, validation=8, test=8)
    strategy = {"kind": "async", "placement": placement, "lockstep": True, "arrivals_per_update": "workers"}
    path = write_config(tmp_path, strategy=strategy, metrics=[])
    on_first = 2 if placement == "dedicated" else 1
    where = ("--hosts", f"{first}:{on_first},{second}:1", "--workers", "2", "--launcher", launcher)
    done = launch(home, path, *where, on=first).check()
    assert hosts_of(done) == [first] * on_first + [second]
    assert "finished: version" in done.stdout
    arrivals = events_of(tmp_path / "run", "arrival")
    assert sorted(arrival["batch"] for arrival in arrivals) == list(range(len(arrivals)))
    assert {arrival["worker"] for arrival in arrivals} == {0, 1}
    assert summary_of(tmp_path / "run")["weight"] >= 1500


@pytest.mark.parametrize(
    ("strategy", "launcher"),
    [
        ("horovod", "mpirun"),
        ("horovod", "horovodrun-gloo"),
        pytest.param("horovod", "horovodrun-mpi", marks=pytest.mark.slow),
        pytest.param("ddp", "mpirun", marks=pytest.mark.slow),
    ],
)
def test_the_synchronous_baselines_have_the_same_losses_on_two_hosts_as_on_one(
    tmp_path: pathlib.Path,
    home: pathlib.Path,
    two_hosts: tuple[str, str],
    losses_of_one_host: list[float],
    strategy: str,
    launcher: str,
) -> None:
    skip_unless_it_runs_here("horovodrun" if strategy == "horovod" else launcher)
    skip_unless_it_runs_here(launcher)
    first, second = two_hosts
    write_corpus(tmp_path / "text", train=200, validation=8, test=8)
    path = write_config(tmp_path, strategy={"kind": strategy}, **SYNCHRONOUS)
    where = ("--hosts", f"{first}:1,{second}:1", "--workers", "2", "--launcher", launcher)
    done = launch(home, path, *where, on=first).check()
    assert hosts_of(done) == [first, second]
    losses = losses_of(tmp_path / "run")
    assert len(losses) > 3
    assert losses == pytest.approx(losses_of_one_host, rel=1e-5)


@pytest.mark.slow
def test_a_link_that_is_cut_for_ever_ends_the_run_which_is_then_resumed(
    tmp_path: pathlib.Path, home: pathlib.Path, two_hosts: tuple[str, str]
) -> None:
    """Open MPI's mpirun asks its processes on the other host to end, and would wait for their answer for a quarter of an hour."""
    skip_unless_it_runs_here("mpirun")
    first, second = two_hosts
    write_corpus(tmp_path / "text", train=200, validation=8, test=8)
    limits = {"worker_timeout_seconds": 4.0, "store_timeout_seconds": 8.0, "stop_timeout_seconds": 8.0}
    path = write_config(
        tmp_path, strategy={"kind": "async", **limits}, emulation={"seconds": 0.2}, training={"weight": 6000}, metrics=[]
    )
    where = ("--hosts", f"{first}:2,{second}:1", "--workers", "2")
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(launch, home, path, *where, on=first)
        until(lambda: ((tmp_path / "run/events.jsonl").exists() and len(losses_of(tmp_path / "run")) > 1) or job.done())
        with cut(second):
            done = job.result()
    assert not done.timed_out and done.returncode not in (0, 124), done
    assert "launch: killed mpirun: rank 0 ended 8 s ago" in done.stderr, done
    assert "launch: failed after" in done.stdout and "; saved: version" in done.stdout
    done = launch(home, path, "--workers", "2", "--resume").check()
    arrivals = events_of(tmp_path / "run", "arrival")
    assert sorted(arrival["batch"] for arrival in arrivals) == list(range(len(arrivals)))
