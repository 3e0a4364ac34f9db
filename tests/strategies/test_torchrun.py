"""Strategy `ddp` on ranks that torchrun has started, beside the same run under mpirun."""

from __future__ import annotations

import os
import pathlib
import re
import select
import socket
import sys
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from hvd_async.errors import SetupError
from hvd_async.strategies.life_lines import connect_ranks
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.mpi.runs import checkpoint_checksum, events_of, losses_of, summary_of, write_config
from tests.ranks import Completed, mpi_family, run_limited

ROOT = pathlib.Path(__file__).parents[2]


def torchrun(*program: str, cwd: pathlib.Path, timeout: float = 150, **more: str) -> Completed:
    """Run a program on two ranks of torchrun, which meet at a port of its own choice. `more`: variables of the environment."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MASTER_"))} | more
    starting = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *program)
    return run_limited(starting, {**environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, timeout, cwd=cwd)


@pytest.fixture
def desk(tmp_path: pathlib.Path) -> pathlib.Path:
    write_corpus(tmp_path / "text", train=60, validation=8, test=8)
    training = {"weight": None, "updates": 6, "threads": 1, "checkpoint_every": 3}
    write_config(tmp_path, strategy={"kind": "ddp"}, training=training)
    return tmp_path


@pytest.mark.mpi
@pytest.mark.skipif(mpi_family() is None, reason="no mpirun in this environment; see launch/setup.sh")
def test_a_run_has_the_losses_and_parameters_of_the_same_run_under_mpirun(desk: pathlib.Path) -> None:
    done = torchrun("-m", "hvd_async", "train", "run.yaml", "--set", "output=torchrun", cwd=desk).check()
    assert done.stdout.count("rank 1 on ") == 1 and "MPI" not in done.stdout
    launch = (sys.executable, "-m", "hvd_async", "launch", "run.yaml", "--workers", "2", "--set", "output=mpirun")
    run_limited(launch, {**os.environ, "PYTHONPATH": str(ROOT)}, 150, cwd=desk).check()
    runs = [desk / "torchrun", desk / "mpirun"]
    losses, checksums = [losses_of(run) for run in runs], [checkpoint_checksum(run) for run in runs]
    assert losses[0] == losses[1] and len(losses[0]) > 1
    updates = [[(u["version"], u["loss"]) for u in events_of(run, "update")] for run in runs]
    assert updates[0] == updates[1] and len(updates[0]) == 6
    assert checksums[0] == checksums[1]
    assert summary_of(runs[0])["num_workers"] == 2
    # A run of either launcher goes on under the other one.
    more = ("train", "run.yaml", "--set", "output=mpirun", "--set", "training.updates=8", "--resume")
    torchrun("-m", "hvd_async", *more, cwd=desk).check()
    assert summary_of(runs[1])["updates"] == 8


def test_torchrun_as_a_task_of_srun_trains_on_all_its_ranks(desk: pathlib.Path) -> None:
    step = {
        "SLURM_PROCID": "0",
        "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }
    torchrun("-m", "hvd_async", "train", "run.yaml", cwd=desk, **step).check()
    assert summary_of(desk / "run")["num_workers"] == 2


def test_the_ranks_exchange_values_of_any_size(desk: pathlib.Path) -> None:
    done = torchrun(str(ROOT / "tests" / "strategies" / "torchrun_toy.py"), cwd=desk).check()
    assert done.stdout.count("['rank 0 of 2', 'rank 1 of 2']") == 2


ON_TWO_HOSTS = """
import os, sys
from hvd_async.errors import PeerError, SetupError
from hvd_async.strategies import torchrun_group

torchrun_group._LOOK_SECONDS = 0.5
torchrun_group._MEETING_SECONDS = float(os.environ["MEETING_SECONDS"])
if os.environ["END"] == "before the meeting":
    os._exit(3)
try:
    group = torchrun_group.TorchrunGroup()
    group.allgather("x" * (5 << 20))
    if os.environ["END"] == "at work":
        os._exit(3)
    group.allgather("")
    print("has waited in vain", flush=True)
except (PeerError, SetupError) as error:
    print(f"said {type(error).__name__}: {error}", flush=True)
    sys.exit(error.exit_status)
"""


@pytest.mark.parametrize("has_store", [True, False])
@pytest.mark.parametrize(
    ("end", "meeting_seconds", "message"),
    [
        ("at work", 300, r"said PeerError: torchrun: rank [01] has ended while rank [01] waits for it"),
        ("before the meeting", 3, r"said SetupError: torchrun: rank [01] has not come in 3\.0 s"),
    ],
)
def test_a_rank_that_ends_on_another_host_ends_the_wait(
    desk: pathlib.Path, end: str, meeting_seconds: int, message: str, has_store: bool
) -> None:
    """Two agents stand for two hosts, of which the one with the lower address has the store of the ranks; `has_store`: whether
    that is the one with the rank that waits. The agent of a rank that has ended goes, and a store with it."""
    (desk / "ranks.py").write_text(ON_TWO_HOSTS)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MASTER_"))}
    environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MEETING_SECONDS": str(meeting_seconds)}

    def host(number: int, end: str) -> Completed:
        words = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "7", "--rdzv-backend", "c10d")
        meeting = ("--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf", f"is_host={int(not end)}")
        starting = (sys.executable, "-m", "torch.distributed.run", *words, *meeting, "--local-addr", f"127.0.0.{number}")
        return run_limited((*starting, "ranks.py"), {**environ, "END": end}, 120, cwd=desk)

    with ThreadPoolExecutor(2) as pool:
        waiting, ending = pool.submit(host, 1 if has_store else 2, ""), pool.submit(host, 2 if has_store else 1, end)
    assert ending.result().returncode != 0 and waiting.result().returncode != 0
    if not has_store and end == "before the meeting":
        message = r"said PeerError: torchrun: its store has gone, with rank 0 or the agent of its host"
    assert re.search(message, waiting.result().stdout), waiting.result()


def test_of_many_ranks_each_learns_that_one_has_ended() -> None:
    place: Future[str] = Future()

    def share(text: str) -> str:
        if text:
            place.set_result(text)
            host, port, _ = text.split()
            with socket.create_connection((host, int(port))) as stranger:
                stranger.sendall(b"0" * 40)  # with another token
        return place.result(30)

    with ThreadPoolExecutor(4) as pool:
        lines = list(pool.map(lambda rank: connect_ranks(rank, 4, share, 30), range(4)))
    assert [line.ended(rank) for line in lines for rank in range(4) if line is not lines[rank]] == [None] * 12
    lines[2]._connections[0].close()
    assert select.select([lines[0]._connections[2]], [], [], 30)[0]
    assert [lines[0].ended(rank) for rank in (1, 2, 3)] == [None, 2, None]
    for connection in lines[0]._connections.values():  # so rank 0 ends
        connection.close()
    assert select.select([lines[1]._connections[0]], [], [], 30)[0]
    assert lines[1].ended(2) == 0
    for line in lines:
        for connection in line._connections.values():
            connection.close()


def test_a_rank_that_does_not_connect_is_named() -> None:
    with pytest.raises(SetupError, match=r"torchrun: rank 1 has not reached rank 0 in 0\.1 s"):
        connect_ranks(0, 3, lambda text: text, 0.1)
    with pytest.raises(SetupError, match=r"torchrun: rank 2 does not reach rank 0 at 127\.0\.0\.1, port 1: "):
        connect_ranks(2, 3, lambda text: "127.0.0.1 1 token", 5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--set", "strategy.kind=async"],
            "strategy async: got torchrun, which starts no MPI, expected another launcher: type `hvd-async launch CONFIG"
            " --workers 2`, or choose strategy.kind=ddp",
        ),
        (["--set", "strategy.kind=horovod"], "strategy horovod: got torchrun, which starts no MPI"),
        (["--set", "task.data.folder=none"], "none"),
    ],
)
def test_an_error_is_one_line_of_one_rank(desk: pathlib.Path, words: list[str], message: str) -> None:
    done = torchrun("-m", "hvd_async", "train", "run.yaml", *words, cwd=desk)
    lines = [line for line in done.stderr.splitlines() if line.startswith("hvd-async: ")]
    assert done.returncode != 0 and len(lines) == 1 and message in lines[0], done


def test_rank_0_reports_the_error_even_when_it_comes_last(desk: pathlib.Path) -> None:
    """torchrun ends rank 0 as soon as rank 1 has failed."""
    late = "import os, sys, time\nfrom hvd_async.__main__ import main\ntime.sleep(2 * (os.environ['RANK'] == '0'))\n"
    patient = "from hvd_async.system import failure_message\nfailure_message._REPORTER_SECONDS = 60.0\n"
    (desk / "late.py").write_text(f"{late}{patient}sys.exit(main(['train', 'absent.yaml']))\n")
    done = torchrun("late.py", cwd=desk)
    assert done.returncode != 0 and done.stderr.count("hvd-async: absent.yaml: ") == 1, done


def test_torchrun_without_a_place_is_refused(desk: pathlib.Path) -> None:
    done = train_alone(desk, TORCHELASTIC_RUN_ID="none")
    assert done.returncode == 4 and "hvd-async: environment variable MASTER_ADDR: not set" in done.stderr, done


def test_ranks_that_no_agent_would_end_are_refused(desk: pathlib.Path) -> None:
    done = train_alone(desk, MASTER_ADDR="127.0.0.1", MASTER_PORT="1")  # as in a pod of a PyTorchJob
    assert done.returncode == 4, done
    [line] = [line for line in done.stderr.splitlines() if line.startswith("hvd-async: ")]
    assert "strategy ddp: got RANK=0 and WORLD_SIZE=2 from another program than torchrun, expected torchrun" in line


def train_alone(desk: pathlib.Path, **more: str) -> Completed:
    left = {"RANK": "0", "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "HOME": str(desk), **more}
    return run_limited((sys.executable, "-m", "hvd_async", "train", "run.yaml"), left, 60, cwd=desk)
