"""Command lines, compared whole with files in `golden/`; running one and its signals."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest

from hvd_async.config import RunConfig, parse_config
from hvd_async.errors import SetupError
from hvd_async.launcher import (
    Command,
    Host,
    LaunchOptions,
    TrainArguments,
    detect_mpi,
    launch_command,
    mpirun_command,
    num_ranks_of,
    parse_hosts,
    parse_mpi_family,
    run_command,
)

GOLDEN = pathlib.Path(__file__).parent / "golden"
TWO_HOSTS = (Host("node1", 3), Host("node2", 2))
TRAIN = TrainArguments("run.yaml")


def config(kind: str, shards: int = 1, placement: str = "dedicated", **training: Any) -> RunConfig:
    tree = {
        "output": "runs/x",
        "data": {"folder": "data"},
        "strategy": {"kind": kind, "placement": placement},
        "store": {"shards": shards},
        "training": {"epochs": 1, **training},
    }
    return parse_config(tree, source="test")


def options(**changes: Any) -> LaunchOptions:
    return LaunchOptions(**{"python": "python", "num_cores": 8, **changes})


CASES = {
    "single": (config("single"), TRAIN, 1, options()),
    "openmpi-async": (config("async"), TRAIN, 2, options()),
    "openmpi-async-few-cores-root": (config("async"), TRAIN, 4, options(num_cores=2, as_root=True)),
    "openmpi-async-two-hosts": (config("async"), TRAIN, 4, options(hosts=TWO_HOSTS, num_cores=16)),
    "openmpi-async-shards": (config("async", shards=3), TRAIN, 2, options(hosts=TWO_HOSTS)),
    "openmpi-async-colocated-shards": (config("async", shards=3, placement="colocated"), TRAIN, 4, options(hosts=TWO_HOSTS)),
    "openmpi-horovod-threads": (config("horovod", threads=3), TRAIN, 2, options()),
    "openmpi-ddp-extra": (config("ddp"), TRAIN, 2, options(extra=("--with-ft", "ulfm"))),
    "openmpi-resume-overrides": (
        config("async"),
        TrainArguments(
            "my runs/run.yaml", ("seed=3", "training.device=cuda:0", "emulation.slow_workers={0: 2.0}"), resume=True
        ),
        2,
        options(mpirun="/opt/mpi/bin/mpirun", python="/opt/env/bin/python"),
    ),
    "mpich-async-root": (config("async"), TRAIN, 2, options(mpi="mpich", as_root=True)),
    "mpich-async-two-hosts": (config("async"), TRAIN, 4, options(mpi="mpich", hosts=TWO_HOSTS)),
    "horovodrun-gloo": (config("horovod"), TRAIN, 2, options(starter="horovodrun-gloo")),
    "horovodrun-gloo-mpich-two-hosts": (
        config("horovod"),
        TRAIN,
        4,
        options(starter="horovodrun-gloo", mpi="mpich", hosts=TWO_HOSTS),
    ),
    "horovodrun-mpi": (config("horovod"), TRAIN, 2, options(starter="horovodrun-mpi")),
    "horovodrun-mpi-async-two-hosts": (config("async"), TRAIN, 4, options(starter="horovodrun-mpi", hosts=TWO_HOSTS)),
}


@pytest.mark.parametrize("name", CASES)
def test_command_lines(name: str) -> None:
    golden = GOLDEN / f"launch-{name}.txt"
    assert golden.exists(), f"{golden} is missing; expected:\n{launch_command(*CASES[name]).shell_text()}"
    assert launch_command(*CASES[name]).shell_text() + "\n" == golden.read_text()


def test_every_golden_file_is_used() -> None:
    assert {path.stem.removeprefix("launch-") for path in GOLDEN.glob("launch-*.txt")} == set(CASES)


def test_the_text_does_in_a_shell_what_the_command_does() -> None:
    awkward = Command(("sh", "-c", 'printf "%s|" "$@" "$COLOUR"', "_", "a b", "it's", "$HOME"), {"COLOUR": "dark green"})
    shell = subprocess.run(["sh", "-c", awkward.shell_text()], capture_output=True, text=True, check=True)
    assert shell.stdout == "a b|it's|$HOME|dark green|"


def test_number_of_ranks() -> None:
    assert num_ranks_of(config("async"), 4) == 5
    assert num_ranks_of(config("horovod"), 4) == 4
    assert num_ranks_of(config("async", placement="colocated"), 4) == 4
    assert num_ranks_of(config("async", shards=3), 4) == 7
    assert num_ranks_of(config("async", shards=3, placement="colocated"), 4) == 4
    assert num_ranks_of(config("horovod", shards=3), 4) == 4


@pytest.mark.parametrize(
    ("kind", "num_workers", "changes", "message"),
    [
        ("async", 0, {}, "number of workers: got 0, expected 1 or more"),
        ("single", 2, {}, "got 2, expected 1 for strategy single"),
        ("async", 5, {"hosts": TWO_HOSTS}, "6 ranks do not fit on node1:3,node2:2: 5 slots"),
        ("async", 5, {"hosts": (Host("node1", 4), Host("node2", 1))}, "6 ranks do not fit on node1:4,node2:1: 5 slots"),
        ("async", 2, {"starter": "horovodrun-gloo"}, "starts no MPI, which strategy async needs"),
        ("ddp", 2, {"starter": "horovodrun-gloo"}, "starts no MPI, which strategy ddp needs"),
        ("horovod", 2, {"starter": "horovodrun-mpi", "mpi": "mpich"}, "does not know MPICH"),
    ],
)
def test_what_cannot_be_started(kind: str, num_workers: int, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        launch_command(config(kind), TRAIN, num_workers, options(**changes))


def test_waiting_ranks_yield_where_they_outnumber_the_cores_of_a_host() -> None:
    def yields(num_ranks: int, hosts: tuple[Host, ...]) -> bool:
        command = mpirun_command(["x"], num_ranks, options(num_cores=2, hosts=hosts))
        return "OMPI_MCA_mpi_yield_when_idle" in command.environment

    assert not yields(2, ())
    assert yields(3, ())
    assert not yields(4, (Host("a", 2), Host("b", 2)))
    assert yields(4, (Host("a", 3), Host("b", 1)))


@pytest.mark.parametrize(
    "text", ["a:2,b:1", "a slots=2\nb\n", "# ours\na:2  # big\n\nb:1\n", "a slots=2 max-slots=4\nb slots=1"]
)
def test_hosts_in_every_common_form(text: str) -> None:
    assert parse_hosts(text, "hosts") == (Host("a", 2), Host("b", 1))


@pytest.mark.parametrize(("text", "message"), [("a:two", "got 'a:two'"), ("a:0", "got 'a:0'"), ("# none", "names no host")])
def test_hosts_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(SetupError, match=f"hosts.txt: {message}"):
        parse_hosts(text, "hosts.txt")


def test_families_of_mpirun() -> None:
    assert parse_mpi_family("mpirun (Open MPI) 5.0.11\n") == "openmpi"
    assert parse_mpi_family("HYDRA build details:\n    Version: 5.0.2\n") == "mpich"
    assert parse_mpi_family("something else") is None


def test_an_mpirun_that_is_absent_or_unknown() -> None:
    with pytest.raises(SetupError, match=r"launch/setup\.sh"):
        detect_mpi("/nowhere/mpirun")
    with pytest.raises(SetupError, match="expected one of openmpi, mpich"):
        detect_mpi("/bin/echo")


def test_a_command_runs_in_the_callers_environment_and_its_own() -> None:
    code = "import os, sys; sys.exit(3 if os.environ['A'] + os.environ['B'] == 'xy' else 1)"
    assert run_command(Command((sys.executable, "-c", code), {"B": "y"}), {**os.environ, "A": "x", "B": "z"}) == 3
    assert run_command(Command(("sh", "-c", "kill -KILL $$"), {}), os.environ) == 128 + signal.SIGKILL


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(SetupError, match="/nowhere/mpirun: cannot be started"):
        run_command(Command(("/nowhere/mpirun",), {}), os.environ)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_command_and_its_status_comes_back(signal_number: signal.Signals) -> None:
    child = "trap 'exit 7' INT TERM; echo ready; while :; do sleep 0.05; done"
    caller = textwrap.dedent(f"""
        import os
        from hvd_async.launcher import Command, run_command
        raise SystemExit(run_command(Command(("sh", "-c", {child!r}), {{}}), os.environ))
    """)
    with subprocess.Popen([sys.executable, "-c", caller], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal_number)
        assert process.wait(timeout=30) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="processes are tied by Linux's prctl")
def test_what_was_launched_ends_with_a_launcher_that_is_killed(tmp_path: pathlib.Path) -> None:
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = (
        "import os, sys; from hvd_async.launcher import Command, run_command;"
        f" run_command(Command((sys.executable, '-c', {child!r}), {{}}), os.environ)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    started = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 60.0
    while pathlib.Path(f"/proc/{started}/status").exists() and "zombie" not in _status(started):
        assert time.monotonic() < deadline, "it outlived its launcher"
        time.sleep(0.01)
    launcher.stdout.close()


def _status(process: int) -> str:
    try:
        return pathlib.Path(f"/proc/{process}/status").read_text()
    except OSError:
        return "zombie"
