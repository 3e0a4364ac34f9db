"""`hvd-async launch ... -- PROGRAM`: a script on the ranks of a run, and what is refused before anything starts."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from tests.mpi.runs import signalled, summary_of
from tests.ranks import run_limited

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = str(pathlib.Path(__file__).with_name("blobs_script.py"))
ASYNC = ("--set", "strategy.kind=async")


def launch(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")} | {"PYTHONPATH": str(ROOT)}
    return run_limited((sys.executable, "-m", "hvd_async", "launch", *arguments), environ, timeout)  # type: ignore[return-value]


@pytest.mark.mpi
def test_a_script_trains_with_what_was_given_to_launch(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "base.yaml"
    path.write_text("strategy: {kind: async, arrivals_per_update: 2}\n")
    program = ("--", sys.executable, SCRIPT, str(tmp_path / "run"))
    done = launch(str(path), "--workers", "2", "--set", "training.epochs=1", *program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("launch: done after ")
    summary = summary_of(tmp_path / "run")
    assert (summary["num_workers"], summary["weight"], summary["updates"]) == (2, 90, 6)
    again = launch(str(path), "--workers", "2", *program)
    assert again.returncode == 2 and "holds a run already" in again.stderr
    resumed = launch(str(path), "--workers", "2", "--set", "training.epochs=2", "--resume", *program)
    assert resumed.returncode == 0, resumed.stderr
    assert summary_of(tmp_path / "run")["weight"] == 180


FAILING = """
import dataclasses, os, sys, torch
import hvd_async as ha

@dataclasses.dataclass(frozen=True)
class Frozen(ValueError):
    text: str

run = ha.init(sys.argv[2], epochs=20)
model = torch.nn.Linear(2, 1)
model, optimizer, batches = run.prepare(
    model, torch.optim.SGD(model.parameters(), lr=0.1), torch.utils.data.DataLoader(torch.ones(64, 2), batch_size=4)
)
for number, batch in enumerate(batches):
    loss = model(batch).sum()
    optimizer.zero_grad()
    loss.backward()
    if number == 5 and sys.argv[1] == "loop":
        raise ValueError("of the user")
    if number == 5 and sys.argv[1] == "frozen":
        raise Frozen("of the user")
    if number == 5 and sys.argv[1] == "killed":
        os.kill(os.getpid(), 9)
    optimizer.step(weight=len(batch), loss=loss)
if sys.argv[1] == "end":
    raise ValueError("of the user")
if sys.argv[1] == "first worker":
    if run.worker == 0:
        run.save(sys.argv[2] + "/saved.pt")
    print("last loss", loss)
if sys.argv[1] == "step":
    optimizer.step(weight=1)
if sys.argv[1] == "pull":
    optimizer.pull()
"""


IN_EPOCHS = FAILING.replace("for number", "for epoch in range(20):\n  for number").replace("\n    ", "\n      ")


@pytest.mark.mpi
@pytest.mark.parametrize("strategy", ["async", "ddp"])
def test_a_loop_over_epochs_is_told_at_once_and_ends_in_one_line(tmp_path: pathlib.Path, strategy: str) -> None:
    (tmp_path / "script.py").write_text(IN_EPOCHS)
    line = next(number for number, text in enumerate(IN_EPOCHS.splitlines(), 1) if text.startswith("for epoch"))
    arguments = ("--workers", "2", "--set", f"strategy.kind={strategy}", "--", sys.executable, str(tmp_path / "script.py"))
    done = launch(*arguments, "epochs", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    warning = f"the loop over the batches is inside another loop, in line {line}, whose first turn"
    assert done.stdout.count(warning) == 1 and done.stdout.index(warning) < done.stdout.index("finished: version")
    told = [text for text in done.stderr.splitlines() if text]
    assert len([text for text in told if "batches: iterated twice" in text]) == 1 and "Traceback" not in done.stderr, (
        done.stderr
    )


@pytest.mark.mpi
@pytest.mark.parametrize("call", ["step", "pull"])
def test_a_call_after_the_run_ends_each_rank_in_one_line(tmp_path: pathlib.Path, call: str) -> None:
    (tmp_path / "script.py").write_text(FAILING)
    done = launch("--workers", "2", *ASYNC, "--", sys.executable, str(tmp_path / "script.py"), call, str(tmp_path / "run"))
    assert done.returncode == 2 and "exit status 2" in done.stdout.splitlines()[-1], done
    told = sorted(line.partition(" without a batch")[0] for line in done.stderr.splitlines() if line)
    assert told == [f"hvd-async: rank {rank}: optimizer.{call}: called" for rank in range(3)]
    assert summary_of(tmp_path / "run")["status"] == "finished"


@pytest.mark.mpi
def test_a_program_that_begins_no_run_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "plain.py").write_text("print('at work')\n")
    done = launch("--workers", "2", *ASYNC, "--", sys.executable, str(tmp_path / "plain.py"))
    assert done.returncode == 0 and done.stdout.count("at work\n") == 3
    assert (
        "launch: the program has not called hvd_async.init: each of its processes has done the whole work alone"
        in done.stdout
    )


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("where", "strategy", "end"),
    [
        ("loop", "async", "exit status 1; saved: version "),
        ("frozen", "ddp", "exit status 1; saved: version "),
        ("end", "async", "exit status 1, when training had finished; saved: version "),
        ("end", "horovod", "exit status 1, when training had finished; saved: version "),
    ],
)
def test_a_script_that_raises_on_all_ranks_is_a_failure(tmp_path: pathlib.Path, where: str, strategy: str, end: str) -> None:
    """Also in its own folder, and under an mpirun that ends well although all workers have died."""
    (tmp_path / "failing.py").write_text(FAILING)
    program = ("--", sys.executable, str(tmp_path / "failing.py"), where, str(tmp_path / "run"))
    done = launch("--workers", "2", "--set", f"strategy.kind={strategy}", *program)
    assert done.returncode == 1 and "of the user" in done.stderr, done
    check_failed(done, end)


@pytest.mark.mpi
def test_a_script_all_of_whose_workers_are_killed_is_a_failure(tmp_path: pathlib.Path) -> None:
    """With the status of the store, which alone is left to say why."""
    (tmp_path / "failing.py").write_text(FAILING)
    done = launch(
        "--workers", "2", *ASYNC, "--", sys.executable, str(tmp_path / "failing.py"), "killed", str(tmp_path / "run")
    )
    assert done.returncode == 6 and "0 workers are left, expected at least 1 (strategy.min_workers)" in done.stderr, done
    check_failed(done, "exit status 6; saved: version ")


@pytest.mark.mpi
def test_the_first_worker_may_save_alone_and_the_ranks_variables_are_explained(tmp_path: pathlib.Path) -> None:
    """With a store of its own, whose rank has no batches, and so no loss."""
    (tmp_path / "failing.py").write_text(FAILING)
    program = ("--", sys.executable, str(tmp_path / "failing.py"), "first worker", str(tmp_path / "run"))
    done = launch("--workers", "2", *ASYNC, *program)
    assert done.returncode == 1 and done.stdout.count("last loss") == 2 and "NameError: name 'loss'" in done.stderr
    assert (
        done.stderr.count("hvd-async: rank 0: this rank only holds the store, and its loop had no batches; if `loss`") == 1
    )
    saved = torch.load(tmp_path / "run/saved.pt", weights_only=True)
    last = safetensors.torch.load_file(tmp_path / "run/models/last/model.safetensors")
    assert saved.keys() == last.keys() and all(torch.equal(saved[name], last[name]) for name in last)


def check_failed(done: subprocess.CompletedProcess[str], end: str) -> None:
    last = done.stdout.splitlines()[-1]
    assert last.startswith("launch: failed after ") and end in last and last.endswith(", resume with --resume"), done


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("signal_number", "strategy", "loader"),
    [
        pytest.param(signal.SIGTERM, "async", "map", marks=pytest.mark.slow),
        (signal.SIGUSR1, "horovod", "map"),
        pytest.param(signal.SIGINT, "async", "stream", marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_a_script_whose_batches_are_read_by_processes(
    tmp_path: pathlib.Path, signal_number: int, strategy: str, loader: str
) -> None:
    arguments = {
        "strategy": strategy,
        "epochs": 10_000,
        "log_every_seconds": 0.05,
        "options": {"num_workers": 2, "endless": loader == "stream"},
    }
    program = ("--", sys.executable, SCRIPT, str(tmp_path / "run"), json.dumps(arguments))
    command = (sys.executable, "-m", "hvd_async", "launch", "--set", f"strategy.kind={strategy}", "--workers", "2", *program)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    _, errors = signalled(command, environ, "points/s", signal_number)
    lines = errors.splitlines()
    assert len(lines) == 1 and lines[0].endswith(" stopped by launch, everything saved; resume with --resume"), errors
    assert summary_of(tmp_path / "run")["status"] == "stopped"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--", "python", SCRIPT), "launch: strategy.kind: not given, expected --set strategy.kind=async"),
        ((*ASYNC, "--"), "launch: got nothing after --, expected a program, such as -- python train.py"),
        (
            (*ASYNC, SCRIPT),
            f"as CONFIG, expected -- before it: hvd-async launch --set strategy.kind=async -- python {SCRIPT}",
        ),
        ((*ASYNC, "--", "train.py"), "there is no train.py on PATH; to start a script: -- python train.py"),
        (("--set", "strategy.knd=async", "--", "python", SCRIPT), "--set strategy.knd=async: strategy.knd: unknown key"),
        ((*ASYNC, "--set", f"output={SCRIPT}/run", "--", "python", SCRIPT), f"but {SCRIPT} is a file, expected a folder"),
        ((*ASYNC, "--", "python", "nowhere.py"), "launch: nowhere.py: no such file; expected the training script"),
        ((*ASYNC, "--", "pythen", SCRIPT), "there is no pythen on PATH"),
        (("--set", "strategy.kind=asink", "--", "python", SCRIPT), "strategy.kind: got 'asink'"),
        ((), "launch: got no CONFIG, expected the YAML file of a run, or -- and a program to start"),
    ],
)
def test_mistakes_are_one_line_before_anything_starts(arguments: tuple[str, ...], message: str) -> None:
    done = launch(*arguments)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_dry_run_shows_ranks_and_variables() -> None:
    done = launch(*ASYNC, "--workers", "3", "--dry-run", "--", "python", SCRIPT, "--lr", "0.1")
    assert done.returncode == 0
    assert "# 4 ranks on this machine: 3 workers, 1 for the store alone" in done.stdout
    assert "GOMP_SPINCOUNT=1000" in done.stdout
    assert "HVD_ASYNC_OVERRIDES='[\"strategy.kind=async\"]'" in done.stdout and done.stdout.rstrip().endswith("--lr 0.1")


def test_a_forgotten_separator_is_named() -> None:
    done = launch(*ASYNC, "python", SCRIPT, "--lr", "0.1")
    assert done.returncode == 2 and "to start a script, put -- before it: -- python" in done.stderr, done.stderr


def test_other_verbs_take_no_program() -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run_limited((sys.executable, "-m", "hvd_async", "train", "a.yaml", "--", "python"), environ, 60)
    assert done.returncode == 2 and "expected nothing after --: only launch starts a program" in done.stderr


@pytest.mark.parametrize("kind", ["train", "train-requeue", "heterogeneous"])
def test_a_batch_script_starts_the_program_in_its_job(kind: str) -> None:
    done = launch(*ASYNC, "--slurm", kind, "--nodes", "2", "--workers-per-node", "3", "--", "python", SCRIPT, "a b")
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "hvd-async launch --launcher" in line)
    assert line.removesuffix(" &").endswith(f"-- python {SCRIPT} 'a b'")
    assert "options=(--set strategy.kind=async " in done.stdout and "$config" not in done.stdout
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0
