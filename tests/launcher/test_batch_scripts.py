"""Scripts that `hvd-async launch --slurm` and `compare --slurm` write or refuse to write; `tests/slurm` runs them on a
real Slurm.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import yaml

from hvd_async.__main__ import main
from tests.mpi.runs import write_config


def write_run(folder: pathlib.Path, **sections: Any) -> str:
    return str(write_config(folder, strategy={"kind": "async", **sections.pop("strategy", {})}, **sections))


def write_suite(folder: pathlib.Path, **changes: Any) -> str:
    write_run(folder)
    suite = {
        "base": "run.yaml",
        "workers": 3,
        "budget": {"updates": 4},
        "measure_every": 100,
        "baseline": "all",
        "variants": {"all": {}, "one": {"strategy.arrivals_per_update": 1}},
        **changes,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(suite))
    return str(folder / "tiny.yaml")


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_script_has_the_requested_values(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["launch", write_run(tmp_path), "--slurm", "--nodes", "3", "--gpus-per-node", "2", "--time", "1:30:00"]
    words += [
        "--sbatch=--partition=gpu",
        "--job-name",
        "mine",
        "--set",
        "seed=2",
        "--resume",
        "--launcher",
        "mpirun",
        "--mpi",
        "mpich",
    ]
    assert main(words) == 0
    lines = lines_of(capsys)
    directives = [line.partition("  ")[0].removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert directives == [
        "--job-name=mine",
        "--nodes=3",
        "--ntasks-per-node=2",
        "--cpus-per-task=4",
        "--gpus-per-node=2",
        "--time=1:30:00",
        "--output=%x-%j.out",
        "--signal=B:USR1@120",
        "--partition=gpu",
    ]
    assert f"config={tmp_path / 'run.yaml'}" in lines
    assert any(line.startswith('options=(--set seed=2 --resume --mpi mpich "$@")') for line in lines)
    assert any(line.startswith(f"environment={sys.prefix} ") for line in lines)
    assert "launcher=mpirun" in lines
    assert lines[-1] == 'exec hvd-async launch "$config" --launcher "$launcher" "${options[@]}"'


def test_a_store_of_several_shards_has_as_many_nodes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", write_run(tmp_path, store={"shards": 3}), "--slurm", "heterogeneous"]) == 0
    nodes = [line for line in lines_of(capsys) if line.startswith("#SBATCH --nodes")]
    assert nodes == ["#SBATCH --nodes=3", "#SBATCH --nodes=2"]


def test_a_single_process_requests_one_task(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", write_run(tmp_path, strategy={"kind": "single"}), "--slurm"]) == 0
    lines = lines_of(capsys)
    assert "#SBATCH --nodes=1" in lines and any(line.startswith("#SBATCH --ntasks-per-node=1 ") for line in lines)


@pytest.mark.parametrize(
    ("sections", "words", "status", "message"),
    [
        ({}, ["--slurm", "train-requeue", "--overwrite"], 2, "--overwrite has no effect with --slurm train-requeue"),
        (
            {},
            ["--slurm", "heterogeneous", "--launcher", "mpirun"],
            2,
            "--launcher mpirun has no effect with --slurm heterogeneous",
        ),
        ({}, ["--slurm", "--hosts", "a:2"], 2, "--hosts a:2 has no effect with --slurm"),
        ({}, ["--nodes", "2"], 2, "--nodes has no effect without --slurm"),
        ({}, ["--submit"], 2, "--submit has no effect without --slurm"),
        ({}, ["--slurm", "--nodes", "0"], 2, "--nodes: got 0"),
        ({}, ["--slurm", "--gpus-per-node", "0"], 2, "--gpus-per-node: got 0"),
        (
            {},
            ["--slurm", "--nodes", "2", "--workers-per-node", "4", "--workers", "9"],
            4,
            "--workers: got 9, expected at most 8, the tasks of this job",
        ),
        (
            {"training": {"device": "auto"}},
            ["--slurm", "--gpus-per-node", "2", "--workers-per-node", "3"],
            4,
            "finds no GPU of its own",
        ),
        ({"strategy": {"kind": "horovod"}}, ["--slurm", "heterogeneous"], 4, "--store-apart: expected strategy async"),
        (
            {"strategy": {"kind": "single"}},
            ["--slurm", "--workers-per-node", "2", "--workers", "2"],
            2,
            "--workers-per-node: got 2, expected 1 for strategy single",
        ),
        ({"strategy": {"kind": "single"}}, ["--pbs", "--nodes", "4"], 2, "--nodes: got 4, expected 1 for strategy single"),
        ({}, ["--slurm", "--launcher", "horovodrun-gloo"], 4, "horovodrun --gloo starts no MPI, which strategy async needs"),
        ({}, ["--slurm", "--time", "2"], 2, "--time: got 2, expected more than the 120 seconds"),
        (
            {"strategy": {"kind": "single"}},
            ["--slurm", "--gpus-per-node", "4"],
            2,
            "--gpus-per-node: got 4, expected 1 for strategy single",
        ),
        ({}, ["--pbs", "--job-name=-abc"], 2, "--job-name: got '-abc', expected letters, digits and any of . + - _"),
        ({}, ["--lsf", "--time", "1"], 2, "--time: got 1, expected more than the 120 seconds"),
    ],
)
def test_a_script_that_could_not_run_is_not_written(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    sections: dict[str, Any],
    words: list[str],
    status: int,
    message: str,
) -> None:
    assert main(["launch", write_run(tmp_path, **sections), *words]) == status
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out


def test_the_script_of_a_suite_requests_its_workers(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", write_suite(tmp_path), "--output", "my runs", "--slurm", "--jobs", "2", "--only", "*"]) == 0
    lines = lines_of(capsys)
    assert "#SBATCH --nodes=1" in lines and any(line.startswith("#SBATCH --ntasks-per-node=3 ") for line in lines)
    assert any(line.startswith("folder='my runs' ") for line in lines) and any(
        line.startswith("at_once=2 ") for line in lines
    )
    assert any(line.startswith("options=(--only '*' \"$@\")") for line in lines)


@pytest.mark.parametrize(
    ("words", "nodes", "per_node"),
    [
        ("", 2, 4),
        ("--workers 2", 1, 2),
        ("--workers 9", 3, 3),
        ("--workers 5", 2, 3),
        ("--workers 6 --nodes 1", 1, 6),
        ("--workers 6 --workers-per-node 2", 3, 2),
        ("--workers 6 --gpus-per-node 2", 3, 2),
        ("--workers 3 --nodes 2 --workers-per-node 2", 2, 2),
    ],
)
def test_a_script_asks_for_no_more_than_its_workers_need(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], words: str, nodes: int, per_node: int
) -> None:
    assert main(["launch", write_run(tmp_path), "--slurm", *words.split()]) == 0
    lines = lines_of(capsys)
    assert f"#SBATCH --nodes={nodes}" in lines
    assert any(line.startswith(f"#SBATCH --ntasks-per-node={per_node} ") for line in lines)


def test_simulated_runs_have_one_process(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", write_suite(tmp_path, launcher="simulate"), "--slurm"]) == 0
    lines = lines_of(capsys)
    assert any(line.startswith("#SBATCH --ntasks-per-node=1 ") for line in lines)
    assert any(line.startswith("#SBATCH --cpus-per-task=1 ") for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "3"], "--nodes: got 3 x 1 tasks, expected one, since a run of "),
        (["--workers-per-node", "2"], "--workers-per-node: got 1 x 2 tasks, expected one, since a run of "),
        (["--gpus-per-node", "1"], "--gpus-per-node: got 1, expected --device cuda with it"),
    ],
)
def test_the_script_of_simulated_runs_asks_for_nothing_that_they_would_not_use(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["compare", write_suite(tmp_path, launcher="simulate"), "--slurm", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_suite_is_not_said_to_be_submitted_when_sbatch_refuses_it(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """With a program in place of sbatch that refuses one of the two jobs, the array and the report."""
    count = tmp_path / "calls"
    refusal = f"(($(wc -l < {count}) != {fails_at})) || {{ echo Invalid account >&2; exit 1; }}"
    program = f"echo >> {count}; {refusal}; echo 77"
    (tmp_path / "sbatch").write_text(f"#!/bin/bash\n{program}\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    suite = write_suite(tmp_path, launcher="simulate")
    assert main(["compare", suite, "--output", str(tmp_path / "runs"), "--slurm", "--submit"]) == 4
    captured = capfd.readouterr()
    assert "Invalid account" in captured.err and "compare.sbatch: got exit status 1, expected 0" in captured.err
    assert (tmp_path / "calls").read_text().count("\n") == fails_at and "report: job" not in captured.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slurm", "--gpus-per-node", "2"], "--workers-per-node: got 2 on 1 nodes, expected room for 3 workers"),
        (["--slurm", "--only", "unknown"], "--only: got 'unknown'"),
        (["--slurm", "--count"], "--count has no effect with --slurm"),
        (["--workers-per-node", "2"], "--workers-per-node has no effect without --slurm"),
    ],
)
def test_a_suites_script_that_could_not_run_is_not_written(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["compare", write_suite(tmp_path), "--output", str(tmp_path / "out"), *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and not captured.out


def test_submitting_without_slurm_is_reported_in_one_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["launch", write_run(tmp_path), "--slurm", "--submit"]) == 4
    assert (
        "sbatch: cannot be started: No such file or directory; --submit needs a machine with Slurm"
        in capsys.readouterr().err
    )


# The script that requeues a job, with programs in place of Slurm's that print what they are asked to do.
@pytest.mark.parametrize(
    ("launch", "squeue", "restarts", "status", "is_requeued"),
    [
        ("exit 0", "echo RUNNING", "", 0, False),
        ("exit 143", "echo RUNNING", "", 0, True),
        ("exit 138", "echo RUNNING", "3", 0, True),
        ("exit 143", "echo COMPLETING", "", 143, False),  # cancelled, or out of time
        ("exit 143", "exit 1", "", 143, False),  # Slurm does not report that it runs
        ("exit 143", "echo RUNNING", "100", 143, False),  # requeued often enough
        ("exit 2", "echo RUNNING", "", 2, False),
        ("exit 5", "echo RUNNING", "", 5, False),
        ("exit 1", "echo RUNNING", "", 1, False),  # all nodes answer
    ],
)
def test_only_a_job_that_was_interrupted_is_requeued(
    tmp_path: pathlib.Path, launch: str, squeue: str, restarts: str, status: int, is_requeued: bool
) -> None:
    programs = {"hvd-async": launch, "squeue": squeue, "srun": "exit 0", "scontrol": 'echo "asked: $*"', "sleep": "exit 0"}
    for name, text in programs.items():
        path = tmp_path / ".venv" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    script = pathlib.Path(__file__).parents[2] / "slurm" / "train-requeue.sbatch"
    environ = {"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}
    environ |= {"SLURM_RESTART_COUNT": restarts} if restarts else {}
    done = subprocess.run(
        ["bash", script], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done
    assert ("asked: requeue 7" in done.stdout) == is_requeued, done
