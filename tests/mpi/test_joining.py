"""Processes that join a run under way: `hvd-async join`, `launch --respawn`."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hvd_async.replay.replay import ReplayOptions, replay
from hvd_async.system.process_state import children_of
from hvd_async.tasks.registry import make_task
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.conftest import TWO_HOSTS
from tests.mpi.runs import events_of, summary_of, write_config
from tests.ranks import cut, mpi_family, run_limited, run_ranks

pytestmark = pytest.mark.mpi
ENVIRON = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
COMMAND = (sys.executable, "-m", "hvd_async")


def config(folder: pathlib.Path, weight: int, **strategy: Any) -> pathlib.Path:
    write_corpus(folder / "text", train=200, validation=8, test=8)
    training = {"weight": weight, "threads": 1, "hash_every": 4}
    strategy = {"kind": "async", **strategy}
    return write_config(folder, emulation={"seconds": 0.2}, training=training, strategy=strategy, metrics=[])


@contextlib.contextmanager
def started(*arguments: str, on: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*on, *COMMAND, *arguments], env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def until(is_over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not is_over():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # another process changes files


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """Return the first line of the output that matches."""
    assert process.stdout is not None
    found = next((line for line in process.stdout if re.search(pattern, line)), None)
    assert found is not None, f"ended without {pattern}"
    return found


def pids(*words: str) -> list[int]:
    """Return the processes whose command lines have all `words`."""
    found = []
    for folder in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            line = (folder / "cmdline").read_text().replace("\0", " ")
            if all(word in line for word in words):
                found.append(int(folder.name))
    return sorted(found)


def check_books(run: pathlib.Path) -> None:
    """Check that each batch is in one update, and that the run can be computed again to the last bit."""
    batches = [arrival["batch"] for arrival in events_of(run, "arrival") if "version" in arrival]
    assert sorted(batches) == list(range(len(batches)))
    replay(run, make_task, ReplayOptions(), lambda line: None)


def test_workers_join_and_leave_a_run_under_way(tmp_path: pathlib.Path) -> None:
    path, run = config(tmp_path, 24_000, max_workers=3), tmp_path / "run"
    with started("launch", str(path), "--workers", "2") as launch:
        until((run / "join.json").exists)
        assert stat.S_IMODE((run / "join.json").stat().st_mode) == 0o600
        with started("join", str(run), "--wait", "30") as first:
            read_until(launch, "worker 2 has joined")
            with started("join", str(run), "--wait", "60") as second:  # begins to wait for a place while the run goes on
                none_left = run_limited((*COMMAND, "join", str(run)), ENVIRON, 60)
                until(lambda: any(arrival["worker"] == 2 for arrival in events_of(run, "arrival")))
                first.terminate()
                left, _ = first.communicate(timeout=60)
                output, _ = launch.communicate(timeout=120)
                stayed, _ = second.communicate(timeout=60)
    assert re.search(r"worker 2 has left \S+ after [1-9]\d* batch", left) and first.returncode == 0
    assert launch.returncode == 0 and "worker 2 has left" in output and "2 joined; see" in output
    assert re.search(r"worker 2 has ended with \S+ after [1-9]\d* batch", stayed) and second.returncode == 0
    assert none_left.returncode == 4 and "all 3 places of workers are taken" in none_left.stderr
    assert none_left.stderr.count("\n") == 1
    assert [event["worker"] for event in events_of(run, "joined")] == [2, 2]
    assert summary_of(run)["joined_workers"] == 2 and summary_of(run)["lost_workers"] == 0
    check_books(run)
    assert not (run / "join.json").exists()
    ended = run_limited((*COMMAND, "join", str(run)), ENVIRON, 60)
    assert ended.returncode != 0 and ended.stderr.count("\n") == 1, ended
    assert "got a run that is finished, expected one that trains at the moment" in ended.stderr


@pytest.mark.skipif(mpi_family() != "openmpi", reason="only Open MPI's mpirun keeps the other ranks")
@pytest.mark.slow
def test_workers_that_die_are_replaced(tmp_path: pathlib.Path) -> None:
    path, run = config(tmp_path, 12_000), tmp_path / "run"
    with started("launch", str(path), "--workers", "2", "--respawn", "2") as launch:
        until((run / "join.json").exists)
        os.kill(pids(str(path), "train", "--launched")[-1], signal.SIGKILL)  # after mpirun, in the order of ranks
        read_until(launch, "worker 1 has joined")
        until(lambda: len([arrival for arrival in events_of(run, "arrival") if arrival["worker"] == 1]) > 0)
        os.kill(pids(str(run), "join")[-1], signal.SIGKILL)
        output, _ = launch.communicate(timeout=120)
    assert launch.returncode == 0 and "2 workers lost on the way, 2 joined; see" in output
    assert [event["worker"] for event in events_of(run, "joined")] == [1, 1]
    check_books(run)


@pytest.mark.skipif(mpi_family() != "openmpi", reason="only Open MPI's mpirun keeps the other ranks")
@pytest.mark.slow
def test_the_death_of_the_store_takes_no_replacement_from_the_workers(tmp_path: pathlib.Path) -> None:
    path, run = config(tmp_path, 24_000), tmp_path / "run"
    with started("launch", str(path), "--workers", "2", "--respawn", "2") as launch:
        until((run / "join.json").exists)
        os.kill(pids(str(path), "train", "--launched")[-1], signal.SIGKILL)
        read_until(launch, "worker 1 has joined")
        first = (run / "join.json").read_text()
        os.kill(json.loads(first)["places"][0]["process"], signal.SIGKILL)
        read_until(launch, "resumes at version")
        until(lambda: (run / "join.json").exists() and (run / "join.json").read_text() != first)  # which the dead store left
        os.kill(pids(str(path), "train", "--launched")[-1], signal.SIGKILL)
        read_until(launch, "worker 1 has joined")
        output, _ = launch.communicate(timeout=120)
    assert launch.returncode == 0 and "resumed once, 2 workers lost on the way, 2 joined; see" in output, output
    check_books(run)


@pytest.mark.slow
def test_a_run_goes_on_without_a_worker_that_joined_and_died_under_any_launcher(tmp_path: pathlib.Path) -> None:
    path, run = config(tmp_path, 6_000, max_workers=3, on_worker_failure="stop"), tmp_path / "run"
    with started("launch", str(path), "--workers", "2") as launch:
        until((run / "join.json").exists)
        with started("join", str(run), "--wait", "30") as joiner:
            read_until(launch, "worker 2 has joined")
            joiner.kill()
            output, _ = launch.communicate(timeout=120)
    assert launch.returncode == 0 and "worker 2 is dead" in output and "1 worker lost on the way, 1 joined" in output
    check_books(run)


@pytest.mark.slow
def test_workers_of_another_host_join_over_the_network(tmp_path: pathlib.Path, two_hosts: tuple[str, str]) -> None:
    first, second = two_hosts
    run = tmp_path / "run"
    path = config(
        tmp_path, 12_000, max_workers=4, joins_from="network", worker_timeout_seconds=4.0, store_timeout_seconds=8.0
    )
    there = {host: (str(TWO_HOSTS / "onhost.sh"), host) for host in two_hosts}
    with started("launch", str(path), "--workers", "2", on=there[first]) as launch:
        until((run / "join.json").exists)
        with started("join", str(run), on=there[second]) as killed, started("join", str(run), on=there[second]) as silent:
            read_until(launch, "worker 3 has joined")
            until(lambda: {2, 3} <= {arrival["worker"] for arrival in events_of(run, "arrival")})
            kill_tree(killed)
            read_until(launch, "is dead: its connection from another host has ended; the run goes on")
            with cut(second):
                output, _ = launch.communicate(timeout=120)
                lost = silent.communicate(timeout=120)[0]
    assert launch.returncode == 0 and "2 workers lost on the way, 2 joined; see" in output
    assert silent.returncode != 0 and "the connection to the store has ended" in lost and "Traceback" not in lost
    check_books(run)


@pytest.mark.slow
def test_a_run_with_workers_on_two_hosts_is_joined_by_a_process_that_maps_its_memory(
    tmp_path: pathlib.Path, two_hosts: tuple[str, str]
) -> None:
    """The store's thread carries out the atomic operations of ranks on other hosts, so that they are the processor's for all."""
    run = tmp_path / "run"
    path = config(tmp_path, 9_000, max_workers=3)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(run_ranks, 3, "hvd_async", "train", str(path), timeout=150.0, hosts=two_hosts)
        until(lambda: (run / "join.json").exists() or job.done())
        assert not job.done(), job.result()
        invitation = json.loads((run / "join.json").read_text())
        assert invitation["is_direct"] is True and invitation["address"] is None
        there = (str(TWO_HOSTS / "onhost.sh"), two_hosts[0])
        joined = run_limited((*there, *COMMAND, "join", str(run), "--wait", "30"), ENVIRON, 150)
        done = job.result().check()
    assert re.search(r"worker 2 has ended with \S+ after [1-9]\d* batch", joined.stdout), joined
    assert "1 joined; see" in done.stdout
    check_books(run)


def kill_tree(process: subprocess.Popen[str]) -> None:
    """Kill the process, also if it is a child of a script that started it."""
    for pid in [process.pid, *children_of(process.pid)]:
        os.kill(pid, signal.SIGKILL)


def test_respawn_is_refused_where_it_cannot_work(tmp_path: pathlib.Path) -> None:
    path = config(tmp_path, 100, on_worker_failure="stop")
    for arguments, words in (
        ((str(path), "--respawn", "1"), "on_worker_failure: continue"),
        ((str(path), "--respawn", "-1"), "got -1, expected 0 or more"),
        ((str(path), "--respawn", "1", "--set", "strategy.kind=single"), "expected strategy.kind: async"),
        ((str(path), "--respawn", "1", "--set", "strategy.on_worker_failure=continue", "--mpi", "mpich"), "Open MPI 5"),
    ):
        done = run_limited((*COMMAND, "launch", *arguments), ENVIRON, 60)
        assert done.returncode != 0 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
