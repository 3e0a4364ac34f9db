"""`hvd-async launch` for real: mpirun, horovodrun, real text on real ranks, and faults that every rank meets."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from typing import Any

import pytest

from hvd_async.launcher import LaunchOptions, RankLayout, mpirun_command
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.mpi.runs import events_of, losses_of, signalled, summary_of, write_config
from tests.ranks import Completed, mpi_family, mpirun_path, run_limited
from tests.runs.saved import load_latest_checkpoint

pytestmark = pytest.mark.mpi


def launch(path: pathlib.Path, *arguments: str, timeout: float = 150) -> Completed:
    environ = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    return run_limited((sys.executable, "-m", "hvd_async", "launch", str(path), *arguments), environ, timeout)


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_mpirun_trains_a_translation_model_through_the_store(tmp_path: pathlib.Path, precision: str) -> None:
    write_corpus(tmp_path / "text", train=200, validation=8, test=8)
    path = write_config(tmp_path, strategy={"kind": "async"}, training={"precision": precision})
    done = launch(path, "--workers", "3").check()
    assert re.search(r"rank 0 on \S+: store, cpu, 1 thread", done.stdout)
    assert "finished: version" in done.stdout
    summary = summary_of(tmp_path / "run")
    assert summary["weight"] >= 1500 and summary["num_workers"] == 3
    assert summary["last"]["scores"].keys() == {"loss", "bleu"}
    measured = {f"v{each['version']:08d}.jsonl" for each in summary["measurements"]}
    assert {path.name for path in (tmp_path / "run" / "samples").iterdir()} == measured and len(measured) > 1
    assert {p.name for p in (tmp_path / "run" / "models" / "best").iterdir()} >= {"model.safetensors", "config.yaml"}
    batches = sorted(arrival["batch"] for arrival in events_of(tmp_path / "run", "arrival"))
    assert batches == list(range(len(batches)))


@pytest.mark.parametrize("launcher", ["horovodrun-gloo", pytest.param("horovodrun-mpi", marks=pytest.mark.slow)])
def test_horovodrun_runs_the_synchronous_baseline(tmp_path: pathlib.Path, launcher: str) -> None:
    pytest.importorskip("horovod", reason="Horovod is not installed; see launch/setup.sh")
    if launcher == "horovodrun-mpi" and mpi_family() != "openmpi":
        pytest.skip("horovodrun --mpi supports only Open MPI")
    write_corpus(tmp_path / "text", train=200, validation=8, test=8)
    path = write_config(tmp_path, strategy={"kind": "horovod"}, metrics=[])
    done = launch(path, "--workers", "2", "--launcher", launcher).check()
    assert "finished: version" in done.stdout
    assert len(losses_of(tmp_path / "run")) > 3


def test_several_processes_of_strategy_single_are_refused_in_one_line(tmp_path: pathlib.Path) -> None:
    path = write_config(tmp_path, strategy={"kind": "single"}, metrics=[])
    write_corpus(tmp_path / "text", train=200, validation=8, test=8)
    family, mpirun = mpi_family(), mpirun_path()
    assert family is not None and mpirun is not None
    options = LaunchOptions(mpi=family, mpirun=mpirun, as_root=os.geteuid() == 0)
    command = mpirun_command((sys.executable, "-m", "hvd_async", "train", str(path)), RankLayout.of_ranks(2, 1), options)
    environ = {**command.environ(os.environ), "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    done = run_limited(command.argv, environ, 60)
    assert done.returncode == 2
    assert done.stderr.count("strategy single: got 2 processes of Open MPI, expected one; choose strategy async") == 1


def sockets_of(process: pathlib.Path) -> set[str]:
    """Return the inodes of the sockets that a process has open, from its folder in /proc."""
    with contextlib.suppress(OSError):
        links = [os.readlink(path) for path in (process / "fd").iterdir()]
        return {link[8:-1] for link in links if link.startswith("socket:[")}
    return set()


def listening() -> dict[str, str]:
    """Return the inode and the hexadecimal address of each TCP socket that listens on another address than the
    loopback's.
    """
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in pathlib.Path("/proc/net", name).read_text().splitlines()[1:]
    ]
    here = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
    return {line[9]: line[1] for line in lines if line[3] == "0A" and line[1].partition(":")[0] not in here}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["async", "ddp", "horovod"])
def test_ranks_of_one_host_listen_to_no_other_host(tmp_path: pathlib.Path, kind: str) -> None:
    """The launcher's own port does not count, since it is not ours to close."""
    if kind == "horovod":
        pytest.importorskip("horovod", reason="Horovod is not installed; see launch/setup.sh")
    write_corpus(tmp_path / "text", train=200, validation=8, test=8)
    training = {"weight": None, "seconds": 3.0, "device": "cpu"}
    path = write_config(tmp_path, strategy={"kind": kind}, training=training, metrics=[])
    seen_ranks, open_to_others = 0, {}
    argv = [sys.executable, "-m", "hvd_async", "launch", str(path), "--workers", "2"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as launched:
        while launched.poll() is None:
            words = {}
            for process in pathlib.Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    words[process] = (process / "cmdline").read_text(errors="replace").split("\0")
            ours = {process for process, argv in words.items() if "train" in argv and str(path) in argv}
            ranks = {process for process in ours if words[process][0] == sys.executable}
            starters = set().union(*(sockets_of(process) for process in ours - ranks))
            seen_ranks = max(seen_ranks, len(ranks))
            for process in ranks:
                own = sockets_of(process) - starters
                open_to_others |= {inode: address for inode, address in listening().items() if inode in own}
    assert launched.returncode == 0 and seen_ranks >= 2
    assert open_to_others == {}


def spoil_nothing_left(text: pathlib.Path) -> None:
    for language in ("en", "de"):
        (text / f"train.{language}").write_text("")


def spoil_alignment(text: pathlib.Path) -> None:
    with (text / "train.de").open("a") as file:
        file.write("one line more\n")


def spoil_presence(text: pathlib.Path) -> None:
    shutil.rmtree(text)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_nothing_left, "no line with text"),
        pytest.param(spoil_alignment, "201", marks=pytest.mark.slow),
        pytest.param(spoil_presence, "no such file", marks=pytest.mark.slow),
    ],
)
def test_an_unusable_corpus_is_reported_in_one_line_and_ends_every_rank(
    tmp_path: pathlib.Path, spoil: Any, words: str
) -> None:
    write_corpus(tmp_path / "text", train=200, validation=8, test=8)
    spoil(tmp_path / "text")
    done = launch(write_config(tmp_path, strategy={"kind": "async"}), "--workers", "2")
    assert not done.timed_out and done.returncode == 3, str(done)
    printed = re.findall(r"hvd-async: .*", done.stderr)
    assert len(printed) == 1 and words in printed[0], str(done)
    assert not (tmp_path / "run").exists()


def test_a_world_that_mpi_does_not_know_is_refused_by_one_process(tmp_path: pathlib.Path) -> None:
    write_corpus(tmp_path / "text", train=200, validation=8, test=8)
    path = write_config(tmp_path, strategy={"kind": "async"})
    # Imitate a launcher of another MPI: it announces 4 ranks, but MPI finds only this process.
    environ = {**os.environ, "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_LOCALID": "0"}
    done = run_limited((sys.executable, "-m", "hvd_async", "train", str(path)), environ, timeout=60)
    assert done.returncode == 4 and "rank 0 of 4" in done.stderr and "rank 0 of 1" in done.stderr, str(done)


@pytest.mark.parametrize("signal_number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_to_launch_reaches_all_ranks_and_saves_everything(tmp_path: pathlib.Path, signal_number: int) -> None:
    write_corpus(tmp_path / "text", train=200, validation=8, test=8)
    training = {"weight": 10_000_000, "log_every_seconds": 0.05}
    path = write_config(tmp_path, strategy={"kind": "async"}, training=training, metrics=[])
    environ = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    command = (sys.executable, "-m", "hvd_async", "launch", str(path), "--workers", "2")
    output, errors = signalled(command, environ, "tokens/s", signal_number)
    name = "Ctrl-C" if signal_number == signal.SIGINT else "SIGTERM"
    assert re.fullmatch(rf"launch: stopped by {name} after 0:\d\d:\d\d, everything saved", output.splitlines()[-1])
    assert errors == ""  # the message was printed once, by this project
    assert summary_of(tmp_path / "run")["status"] == "stopped"
    assert load_latest_checkpoint(tmp_path / "run" / "checkpoints") is not None


@pytest.mark.timeout(60)
def test_an_unfinished_line_is_passed_on_at_once(tmp_path: pathlib.Path) -> None:
    go_on = tmp_path / "go-on"
    os.mkfifo(go_on)
    rank = f"import sys; sys.stdout.write('half'); sys.stdout.flush(); open({str(go_on)!r}).read()"
    family, mpirun = mpi_family(), mpirun_path()
    assert family is not None and mpirun is not None
    options = LaunchOptions(mpi=family, mpirun=mpirun, as_root=os.geteuid() == 0, is_live=True)
    command = mpirun_command((sys.executable, "-c", rank), RankLayout.of_ranks(1, 1), options)
    environ = command.environ(os.environ)
    with subprocess.Popen(command.argv, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as job:
        assert job.stdout is not None and job.stdout.read(4) == b"half"  # while the rank waits for this test
        go_on.write_text("")
