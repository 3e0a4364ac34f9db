"""`launch` notices an mpirun that waits in vain, and kills no other."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from hvd_async.cli import desertion
from hvd_async.cli.desertion import Desertion
from hvd_async.system.process_state import children_of

# Starts processes with the variables of its arguments (rank:namespace), and ends those that are named on its input.
_MPIRUN = """
import os, subprocess, sys
ranks = {}
for word in sys.argv[1:]:
    rank, _, namespace = word.partition(":")
    environ = {**os.environ, "PMIX_RANK": rank, "PMIX_NAMESPACE": namespace}
    ranks[rank] = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, env=environ)
print("started", flush=True)
for line in sys.stdin:
    ranks[line.strip()].communicate()
    print("ended", flush=True)
for rank in ranks.values():
    rank.kill()
    rank.wait()
"""
OUTER = {"PMIX_NAMESPACE": "outer"}


class StandIn:
    """A process that has started others, as mpirun does."""

    def __init__(self, *ranks: str) -> None:
        command = [sys.executable, "-S", "-c", _MPIRUN, *ranks]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.id = self._process.pid
        self._read()

    def end(self, rank: str) -> None:
        """End a rank."""
        assert self._process.stdin is not None
        print(rank, file=self._process.stdin, flush=True)
        self._read()

    def close(self) -> None:
        """End all."""
        self._process.communicate()

    def _read(self) -> None:
        assert self._process.stdout is not None and self._process.stdout.readline()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> float:
    """How long mpirun may take: two looks."""
    monkeypatch.setattr(desertion, "_LOOK_SECONDS", 0.05)
    return 0.1


@pytest.fixture
def started() -> Iterator[list[StandIn]]:
    """Holds what a test has started, which ends with the test."""
    found: list[StandIn] = []
    yield found
    for each in found:
        each.close()


def found_within(watch: Desertion, mpirun: StandIn, num_looks: int) -> int:
    """Return how often the watch was sure in so many looks."""
    count = 0
    for _ in range(num_looks):
        count += watch.is_found(mpirun.id)
        time.sleep(0.02)  # looks are spread over time, as the watch expects them
    return count


def test_an_mpirun_is_deserted_some_time_after_the_end_of_rank_0(
    started: list[StandIn], patience: float, capsys: pytest.CaptureFixture[str]
) -> None:
    mpirun = StandIn("0:job", "1:job")
    started.append(mpirun)
    watch = Desertion(patience, {})
    assert found_within(watch, mpirun, 20) == 0 and not watch.is_sure
    mpirun.end("0")
    assert found_within(watch, mpirun, 40) == 1 and watch.is_sure  # though rank 1 lives: nothing goes on without rank 0
    assert "launch: killed mpirun: rank 0 ended 0 s ago" in capsys.readouterr().err


def test_the_end_of_another_rank_is_no_desertion(started: list[StandIn], patience: float) -> None:
    mpirun = StandIn("0:job", "1:job")
    started.append(mpirun)
    watch = Desertion(patience, {})
    assert found_within(watch, mpirun, 5) == 0
    mpirun.end("1")
    assert found_within(watch, mpirun, 30) == 0


def test_nothing_is_known_where_rank_0_is_on_another_host(started: list[StandIn], patience: float) -> None:
    mpirun = StandIn("2:job")
    started.append(mpirun)
    watch = Desertion(patience, {})
    assert found_within(watch, mpirun, 5) == 0
    mpirun.end("2")
    assert found_within(watch, mpirun, 30) == 0


def test_a_connection_with_the_variables_of_an_outer_job_is_no_rank(started: list[StandIn], patience: float) -> None:
    mpirun = StandIn("0:outer")
    started.append(mpirun)
    watch = Desertion(patience, OUTER)
    assert found_within(watch, mpirun, 5) == 0
    mpirun.end("0")
    assert found_within(watch, mpirun, 30) == 0
    inner = StandIn("0:inner")
    started.append(inner)
    watch = Desertion(patience, OUTER)
    assert found_within(watch, inner, 5) == 0 and children_of(inner.id)
    inner.end("0")
    assert found_within(watch, inner, 30) == 1
