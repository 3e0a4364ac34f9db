"""The test support itself: jobs start on one host and on two, and none outlives its time limit."""

from __future__ import annotations

import time

import pytest

from tests.ranks import pids_marked, run_limited, run_ranks

HELLO = """
from mpi4py import MPI
import os
comm = MPI.COMM_WORLD
same_host = comm.Split_type(MPI.COMM_TYPE_SHARED)
line = f"rank {comm.rank} of {comm.size} on {os.uname().nodename}, {same_host.size} here, {os.environ['COLOUR']}"
os.write(1, (line + "\\n").encode())  # in one piece: lines of several ranks meet in one pipe
"""
STUCK = """
import signal, time
from mpi4py import MPI
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("stuck", flush=True)
time.sleep(600)
"""


@pytest.mark.mpi
def test_ranks_start_on_one_host() -> None:
    done = run_ranks(2, ["-c", HELLO], env={"COLOUR": "green"}).check()
    lines = sorted(done.stdout.splitlines())
    assert [line.partition(" on ")[0] for line in lines] == ["rank 0 of 2", "rank 1 of 2"]
    assert all(line.endswith("2 here, green") for line in lines)


@pytest.mark.mpi
def test_ranks_start_on_two_hosts(two_hosts: tuple[str, str]) -> None:
    first, second = two_hosts
    done = run_ranks(3, ["-c", HELLO], env={"COLOUR": "green"}, hosts=two_hosts).check()
    assert sorted(done.stdout.splitlines()) == [
        f"rank 0 of 3 on {first}, 2 here, green",
        f"rank 1 of 3 on {first}, 2 here, green",
        f"rank 2 of 3 on {second}, 1 here, green",
    ]


@pytest.mark.mpi
def test_a_failed_rank_fails_the_job() -> None:
    done = run_ranks(2, ["-c", "raise SystemExit(3)"])
    assert done.returncode != 0 and not done.timed_out
    with pytest.raises(AssertionError, match="exit status"):
        done.check()


@pytest.mark.mpi
@pytest.mark.parametrize("num_hosts", [1, 2])
def test_the_time_limit_kills_every_rank_and_keeps_the_output(num_hosts: int, request: pytest.FixtureRequest) -> None:
    hosts = request.getfixturevalue("two_hosts") if num_hosts == 2 else ()
    begin = time.monotonic()
    done = run_ranks(2, ["-c", STUCK], timeout=4, hosts=hosts)
    assert done.timed_out and done.returncode != 0
    assert "stuck" in done.stdout
    assert time.monotonic() - begin < 20


def test_the_time_limit_reaches_processes_that_left_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    marks: list[str] = []
    monkeypatch.setattr("tests.ranks.pids_marked", lambda mark: marks.append(mark) or pids_marked(mark))
    done = run_limited(["sh", "-c", "setsid sleep 600 & echo begun; wait"], {"PATH": "/usr/bin:/bin"}, timeout=0.5)
    assert done.timed_out and done.stdout == "begun\n"
    assert not list(pids_marked(marks[0]))
