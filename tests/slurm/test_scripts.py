"""The scripts of `slurm/` unchanged, on a real Slurm: submitted, preempted, cancelled, out of time, and after a node
failure.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
from collections import Counter
from typing import Any

import pytest
import yaml

from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.launcher.test_containers import APPTAINER, write_program
from tests.mpi.runs import checkpoint_checksum, events_of, summary_of, write_config
from tests.ranks import mpi_family, run_limited
from tests.slurm.conftest import BUSY, ROOT, SlurmCluster, until

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(mpi_family() is None, reason="no mpirun in this environment; see launch/setup.sh"),
]

# Resources for tests, instead of those in the scripts.
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", "--time=15")
OTHER = "pmi2" if mpi_family() == "openmpi" else "pmix"


def submit(
    slurm: SlurmCluster, desk: pathlib.Path, script: str, *arguments: str, options: tuple[str, ...] = TWO_NODES
) -> str:
    """Submit a script, and return the number of the job; its output goes to `log`."""
    path = ROOT / "slurm" / f"{script}.sbatch"
    return slurm.run("sbatch", "--parsable", "--output=log", *options, path, *arguments, cwd=desk).strip()


def log_of(desk: pathlib.Path) -> str:
    path = desk / "log"
    return path.read_text() if path.exists() else ""


def finish(slurm: SlurmCluster, desk: pathlib.Path, job: str) -> str:
    """Wait for a job that must succeed, and return its log."""
    state = slurm.wait(job)
    assert state == "COMPLETED", f"{state}\n{log_of(desk)}"
    return log_of(desk)


def updates(desk: pathlib.Path) -> int:
    path = desk / "run" / "events.jsonl"
    return path.read_text().count('"event": "update"') if path.exists() else 0


def wait_for_updates(slurm: SlurmCluster, desk: pathlib.Path, job: str, number: int) -> None:
    def there() -> bool:
        assert slurm.facts(job)["JobState"] in BUSY, log_of(desk)
        return updates(desk) >= number

    until(there, 90, lambda: f"{updates(desk)} updates\n{log_of(desk)}")


def run_of(desk: pathlib.Path, updates: int, **sections: dict[str, Any]) -> str:
    """Write a configuration of `updates` updates with occasional checkpoints, and return the name to give to a script."""
    write_corpus(desk / "text", train=200, validation=8, test=8)
    training = {"weight": None, "updates": updates, "threads": 1, "log_every_seconds": 1.0}
    sections = {"validation": {"every": None}, "metrics": [], **sections}
    write_config(desk, strategy={"kind": "async", **sections.pop("strategy", {})}, training=training, **sections)
    return "run.yaml"


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_a_run_trains_on_two_nodes(slurm: SlurmCluster, desk: pathlib.Path, launcher: str) -> None:
    # There is one more rank, the store, than there are tasks and GPUs.
    options = (*TWO_NODES, "--gpus-per-task=1")
    log = finish(slurm, desk, submit(slurm, desk, "train", run_of(desk, 4), "--launcher", launcher, options=options))
    lines = log.splitlines()
    places = [re.match(r"rank (\d) on (node\d): (\w+)", line) for line in lines]
    assert [place.groups() for place in places if place] == [
        ("0", "node1", "store"),
        ("1", "node1", "worker"),
        ("2", "node2", "worker"),
    ]
    assert re.search("^finished: version 4,", lines[-2]) and lines[-1].startswith("launch: done after"), log
    assert ("the run ends if a worker dies: srun ends all ranks" in log) == (launcher == "srun")
    assert "\x1b" not in log and "\r" not in log
    summary = summary_of(desk / "run")
    assert summary["job"]["nodes"] == "node[1-2]" and summary["job"]["restarts"] == 0


def test_the_script_of_an_example_trains_unchanged(slurm: SlurmCluster, desk: pathlib.Path) -> None:
    path = ROOT / "examples" / "digits" / "job.sbatch"
    job = slurm.run("sbatch", "--parsable", "--output=log", path, "--set", "training.epochs=2", cwd=desk).strip()
    log = finish(slurm, desk, job)
    places = re.findall(r"^rank (\d) on (node\d): (\w+)", log, re.M)
    assert places == [
        *(("0", "node1", "store"), ("1", "node1", "worker"), ("2", "node1", "worker")),
        *(("3", "node2", "worker"), ("4", "node2", "worker")),
    ]
    assert re.search(r"^runs/digits +async +4 workers +loss ", log, re.M), log
    assert "its twin: hvd-async launch --workers 4 --set strategy.kind=horovod" in log
    assert (desk / "runs/digits/model.pt").exists()


def test_the_store_runs_on_a_node_of_its_own(slurm: SlurmCluster, desk: pathlib.Path) -> None:
    command = (sys.executable, "-m", "hvd_async", "launch", run_of(desk, 4), "--slurm", "heterogeneous", "--submit")
    resources = ("--nodes", "1", "--workers-per-node", "2", "--cpus-per-worker", "1", "--time", "5")
    printed = slurm.run(*command, *resources, cwd=desk)
    job = printed.split()[-1]
    path = desk / f"hvd-async-{job}.out"

    def log() -> str:
        return path.read_text() if path.exists() else ""

    # Do not wait for the last line: once in about a hundred times, the srun of Slurm 22.05 stays after all tasks have
    # ended.
    until(lambda: re.search("^(finished|launch): ", log(), re.M), 90, log)
    places = re.findall(r"^rank \d on (node\d): (\w+)", log(), re.M)
    assert places == [("node1", "store"), ("node2", "worker"), ("node2", "worker")], log()
    assert "\nfinished: version 4" in log(), log()
    slurm.run("scancel", job, cwd=desk)


def test_a_suite_is_an_array_of_jobs_and_a_report(slurm: SlurmCluster, desk: pathlib.Path) -> None:
    run_of(desk, 4)
    suite = {
        "base": "run.yaml",
        "launcher": "srun",
        "workers": 2,
        "budget": {"updates": 4},
        "measure_every": 100,
        "set": {"training.tensorboard": False},
        "baseline": "all",
        "variants": {"all": {}, "one": {"strategy.arrivals_per_update": 1}, "too many": {"workers": 5}},
    }
    (desk / "tiny.yaml").write_text(yaml.safe_dump(suite))
    printed = slurm.run("bash", ROOT / "slurm" / "compare.sbatch", "tiny.yaml", cwd=desk)
    array, report = re.findall(r"job (\d+)", printed)
    assert printed.startswith("stage 1: 3 runs"), printed
    assert slurm.wait(report) == "COMPLETED"
    page = (desk / "runs" / "tiny" / "report" / "report.md").read_text()
    assert "--workers: got 5, expected at most 4, the tasks of this job" in page  # the run that asks for too many workers
    assert {summary_of(folder)["status"] for folder in (desk / "runs" / "tiny" / "runs").iterdir()} == {"finished"}
    logs = {path.name: path.read_text() for path in desk.glob("hvd-async-*_*.out")}
    assert set(logs) == {f"hvd-async-{array}_{task}.out" for task in range(3)}
    assert all(
        re.search(rf"^job \d+, task {task} of array {array}", logs[f"hvd-async-{array}_{task}.out"], re.M) for task in (0, 1)
    )


# Slow enough to be interrupted, equally for every worker.
SLOW = {"emulation": {"seconds": 0.2}}


def test_a_run_preempted_by_a_higher_partition_resumes_to_the_same_parameters(
    slurm: SlurmCluster, desk: pathlib.Path
) -> None:
    config = run_of(desk, 60, strategy={"lockstep": True}, **SLOW)
    job = submit(slurm, desk, "train-requeue", config, options=(*TWO_NODES, "--partition=low"))
    wait_for_updates(slurm, desk, job, 10)
    other = slurm.run(
        "sbatch", "--parsable", "--partition=high", "--exclusive", "--nodes=2", "--wrap=true", cwd=desk
    ).strip()
    assert slurm.wait(other) == "COMPLETED"
    log = finish(slurm, desk, job)
    assert slurm.facts(job)["Restarts"] == "1"
    assert re.search("^launch: stopped by .*, everything saved$", log, re.M) and "back into the queue" in log, log
    assert re.search(r"^finished: version 60,.*, resumed once", log, re.M), log
    summary = summary_of(desk / "run")
    assert summary["job"]["restarts"] == 1 and summary["processes"] == 2
    starts = [start["version"] for start in events_of(desk / "run", "start")]
    assert starts[0] == 0 and 10 <= starts[1] < 60  # the run stopped in the middle, and resumed there
    # An uninterrupted run, without Slurm and without emulated step times.
    launch = [sys.executable, "-m", "hvd_async", "launch", config, "--workers", "2", "--set", "output=unbroken"]
    run_limited([*launch, "--set", "emulation={}"], {**os.environ, "PYTHONPATH": str(ROOT)}, 120, cwd=desk).check()
    assert checkpoint_checksum(desk / "run") == checkpoint_checksum(desk / "unbroken")


def test_a_run_is_saved_ahead_of_the_time_limit_and_resumes_with_every_arrival_counted_once(
    slurm: SlurmCluster, desk: pathlib.Path
) -> None:
    config = run_of(desk, 1_000_000, **SLOW)
    # Slurm checks time limits twice a minute, so the signal comes within the first half of this one.
    job = submit(slurm, desk, "train-requeue", config, options=(*TWO_NODES, "--time=1", "--signal=B:USR1@30"))
    until(lambda: "everything saved" in log_of(desk), 240, lambda: log_of(desk))
    stopped_at = updates(desk)
    run_of(desk, stopped_at + 20, **SLOW)  # the length may change when the run resumes
    log = finish(slurm, desk, job)
    assert re.search(rf"^finished: version {stopped_at + 20},.*, resumed once", log, re.M), log
    arrivals, made, summary = events_of(desk / "run", "arrival"), events_of(desk / "run", "update"), summary_of(desk / "run")
    assert sorted(arrival["batch"] for arrival in arrivals) == list(range(len(arrivals)))
    applied = [arrival for arrival in arrivals if "refused" not in arrival]
    assert Counter(arrival["version"] for arrival in applied) == {update["version"]: update["arrivals"] for update in made}
    assert [update["version"] for update in made] == list(range(1, stopped_at + 21))
    assert len(arrivals) == len(applied) + sum(summary["refused"].values()) and summary["pending"] == 0


def test_a_job_that_is_cancelled_saves_everything_and_is_not_requeued(slurm: SlurmCluster, desk: pathlib.Path) -> None:
    job = submit(slurm, desk, "train-requeue", run_of(desk, 1_000_000, **SLOW))
    wait_for_updates(slurm, desk, job, 5)
    slurm.run("scancel", job, cwd=desk)
    assert slurm.wait(job) == "CANCELLED"
    until(lambda: "everything saved" in log_of(desk), 30, lambda: log_of(desk))
    assert summary_of(desk / "run")["status"] == "stopped"
    assert checkpoint_checksum(desk / "run")
    assert slurm.facts(job)["Restarts"] == "0" and "back into the queue" not in log_of(desk)


def test_after_a_node_failure_the_run_resumes_from_its_last_checkpoint(slurm: SlurmCluster, desk: pathlib.Path) -> None:
    config = run_of(desk, 40, **SLOW)
    job = submit(slurm, desk, "train-requeue", config, "--set", "training.checkpoint_every=5")
    wait_for_updates(slurm, desk, job, 12)
    slurm.do("kill-node", 2)
    try:
        until(lambda: slurm.facts(job)["Restarts"] == "1", 90, lambda: f"{slurm.facts(job)}\n{log_of(desk)}")
    finally:
        slurm.do("start-node", 2)
    log = finish(slurm, desk, job)
    assert re.search(r"^finished: version 40,.*, resumed once", log, re.M), log
    versions = [update["version"] for update in events_of(desk / "run", "update")]
    assert versions == list(range(1, 41))
    assert [start["version"] for start in events_of(desk / "run", "start")][1] >= 10


def test_a_wrong_configuration_is_reported_in_one_line_and_ends_the_job(slurm: SlurmCluster, desk: pathlib.Path) -> None:
    run_of(desk, 5)
    job = submit(slurm, desk, "train", "run.yaml", "--set", "strategy.kind=asink")
    assert slurm.wait(job, 30) == "FAILED"
    assert slurm.facts(job)["ExitCode"] == "2:0"
    assert re.fullmatch(r"hvd-async: .*strategy\.kind: got 'asink'.*\n", log_of(desk)), log_of(desk)


def test_an_error_that_only_the_ranks_detect_ends_a_requeueing_job(slurm: SlurmCluster, desk: pathlib.Path) -> None:
    config = run_of(desk, 2)
    finish(slurm, desk, submit(slurm, desk, "train-requeue", config))
    for language in ("en", "de"):
        with (desk / "text" / f"train.{language}").open("a") as text:
            text.write("one more\n")
    job = submit(slurm, desk, "train-requeue", config, options=(*TWO_NODES, "--open-mode=truncate"))
    assert slurm.wait(job) == "FAILED"
    assert slurm.facts(job)["Restarts"] == "0"
    assert "got data that differ from the run's training data" in log_of(desk), log_of(desk)
    assert re.search("^launch: failed", log_of(desk), re.M), log_of(desk)


def test_ranks_that_do_not_find_each_other_are_refused(slurm: SlurmCluster, desk: pathlib.Path) -> None:
    run_of(desk, 5)
    words = f"srun --mpi={OTHER} --ntasks=2 .venv/bin/python -m hvd_async train run.yaml"
    job = slurm.run("sbatch", "--parsable", "--output=log", *TWO_NODES, f"--wrap={words}", cwd=desk).strip()
    assert slurm.wait(job) == "FAILED"
    wanted = "pmix" if mpi_family() == "openmpi" else "pmi2"
    assert f"use srun --mpi={wanted}" in log_of(desk) and not (desk / "run").exists(), log_of(desk)


def test_a_job_that_is_submitted_from_python_is_followed_to_its_result(slurm: SlurmCluster, desk: pathlib.Path) -> None:
    run_of(desk, 6)
    wishes = "system='slurm', script='train-requeue', nodes=2, workers_per_node=1, cpus_per_worker=2, time='15', queue='low'"

    def python(program: str) -> str:
        return slurm.run(sys.executable, "-c", f"import hvd_async\nfrom hvd_async import SubmittedJob\n{program}", cwd=desk)

    job = python(f"job = hvd_async.submit('run.yaml', {wishes}); print(repr(job), job.state in ('pending', 'running'))")
    name, _, is_open = job.strip().rpartition(" ")
    number = name.split("'")[3]
    assert is_open == "True" and slurm.facts(number)["Partition"] == "low"
    finish_python = f"job = {name}; print(job.wait(timeout=50), job.result()['updates'], job.result()['num_workers'])"
    slurm.wait(number)
    assert python(finish_python).split() == ["completed", "6", "2"]
    (desk / "run").rename(desk / "first")
    other = python(
        f"job = hvd_async.submit('run.yaml', {wishes}, overrides={{'training.updates': 100000}}); print(repr(job))"
    ).strip()
    wait_for_updates(slurm, desk, other.split("'")[3], 3)
    python(f"job = {other}; assert job.state == 'running'; job.cancel()")
    slurm.wait(other.split("'")[3])
    assert python(f"print({other}.wait(timeout=50))").strip() == "cancelled"
    assert summary_of(desk / "run")["status"] == "stopped"


def test_the_ranks_of_a_job_run_in_a_container(slurm: SlurmCluster, desk: pathlib.Path) -> None:
    write_program(desk / "bin" / "apptainer", APPTAINER)
    (desk / "image.sif").write_text("an image")
    (desk / "noted").mkdir()
    stand_in = {"STAND_IN_LOG": str(desk / "noted"), "STAND_IN_PREFIX": sys.prefix}
    environ = {"PATH": f"{desk / 'bin'}:{os.environ['PATH']}", "STAND_IN_PATH": os.environ["PATH"], **stand_in}
    words = ("--output=log", *TWO_NODES, ROOT / "slurm" / "train.sbatch", run_of(desk, 6), "--container", "image.sif")
    job = slurm.run("sbatch", "--parsable", *words, cwd=desk, env=environ).strip()
    finish(slurm, desk, job)
    assert summary_of(desk / "run")["updates"] == 6
    calls = [path.read_text().splitlines() for path in (desk / "noted").iterdir()]
    assert len(calls) == 3
    for *bound, image in calls:  # Slurm sets TMPDIR, which may be a folder around this one
        assert image == str(desk / "image.sif") and any(f"{desk}/".startswith(f"{folder}/") for folder in bound), calls


def test_the_command_of_the_documentation_starts_torchrun_on_every_node(slurm: SlurmCluster, desk: pathlib.Path) -> None:
    text = (ROOT / "docs" / "clusters.md").read_text()
    [command] = re.findall(r"^srun [^\n]*torchrun (?:.|\n)*?(?=\n```)", text, re.MULTILINE)
    config = run_of(desk, 6, strategy={"kind": "ddp"})
    command = command.replace("configs/multi30k.yaml", config).replace("--nproc-per-node 4", "--nproc-per-node 2")
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    words = ("--parsable", "--output=log", *TWO_NODES, f"--wrap={command}")
    finish(slurm, desk, slurm.run("sbatch", *words, cwd=desk, env={"PATH": path}).strip())
    assert summary_of(desk / "run")["num_workers"] == 4, log_of(desk)
    assert summary_of(desk / "run")["updates"] == 6
