"""A suite as a job array: each run in a process of its own, in parallel, on any host, stopped and restarted at any time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import pathlib
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest

from hvd_async.__main__ import main
from hvd_async.comparison import plan
from hvd_async.comparison.plan import read_collection, read_plan
from hvd_async.comparison.suite import Spec, Suite
from hvd_async.config import RunConfig
from hvd_async.errors import DataError
from hvd_async.runs.event_log import read_events
from hvd_async.system import locks
from tests.comparison.processes import SECONDS, children_of, compare, events_of, is_alive, until
from tests.comparison.tiny import (
    PretendedRuns,
    compute_here,
    execute,
    in_place_of_processes,
    tiny,
    write,
    write_base,
)
from tests.system.other_process import locked_by_another


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> PretendedRuns:
    """Runs are pretended, not computed."""
    in_place_of_processes(monkeypatch, pretended := PretendedRuns())
    return pretended


def command(path: pathlib.Path, *arguments: str) -> list[str]:
    return ["compare", str(path), "--output", str(path.parent / "out"), *arguments]


def task(path: pathlib.Path, number: int) -> AbstractContextManager[subprocess.Popen[str]]:
    """Start a task in a process that is killed at the end of the block."""
    return compare(path, path.parent / "out", "--task", str(number))


# Number and order of tasks.


@pytest.mark.parametrize(
    ("changes", "only", "counts"),
    [
        ({}, [], "2\n"),
        ({"seeds": [1, 2, 3]}, [], "6\n"),
        ({"rates": [0.1, 0.2, 0.4]}, [], "6\n"),
        ({"rates": [0.1, 0.2, 0.4], "seeds": [1, 2, 3]}, [], "6\n4\n"),
        ({"rates": [0.1, 0.2, 0.4], "seeds": [1, 2, 3]}, ["horovod"], "3\n2\n"),
        ({"rates": [0.1, 0.2, 0.4], "seeds": [1, 2]}, ["*-0.1-s2"], "0\n2\n"),
        ({"environments": {"a": {}, "b": {}}, "seeds": [1, 2]}, ["b"], "4\n"),
    ],
)
def test_the_number_of_runs_of_each_stage_is_printed(
    folder: pathlib.Path, changes: dict[str, Any], only: list[str], counts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    patterns = [word for pattern in only for word in ("--only", pattern)]
    assert main(command(write(folder, tiny(**changes)), "--count", *patterns)) == 0
    assert capsys.readouterr().out == counts and not (folder / "out").exists()


def test_tasks_are_the_runs_of_a_suite_in_its_order(folder: pathlib.Path, pretended: PretendedRuns) -> None:
    path = write(folder, tiny(seeds=[1, 2]))
    assert [main(command(path, "--task", str(number))) for number in range(4)] == [0] * 4
    assert pretended.names == ["horovod-s1", "n_1-s1", "horovod-s2", "n_1-s2"]
    assert not (folder / "out/report").exists()
    assert execute(path, folder / "out") == ([], [])  # a plain comparison finds all runs done


def test_with_only_tasks_are_numbered_among_the_selected_runs(folder: pathlib.Path, pretended: PretendedRuns) -> None:
    path = write(folder, tiny(seeds=[1, 2]))
    assert main(command(path, "--only", "N = 1", "--task", "1")) == 0
    assert pretended.names == ["n_1-s2"]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("--task 4", "--task: got 4, expected 0 to 3: the numbers of the runs in stage 1"),
        ("--task -1", "--task: got -1, expected 0 to 3: the numbers of the runs in stage 1"),
        ("--task 2 --stage 2", "--task: got 2, expected 0 to 1: the numbers of the runs in stage 2"),
        ("--task 0 --stage 3", "--stage: got 3, expected 1 or 2"),
        ("--task 0 --stage 0", "--stage: got 0, expected 1 or 2"),
        ("--task 0 --only *-s2", "--task: got 0, expected none at all: the numbers of the runs in stage 1"),
        ("--task 0 --jobs 2", "--jobs 2 has no effect with --task; remove one of them"),
        ("--count --jobs 2", "--jobs 2 has no effect with --count; remove one of them"),
        ("--stage 2", "--stage: got 2, expected --task N with it"),
    ],
)
def test_a_number_without_a_run_is_refused(
    folder: pathlib.Path, pretended: PretendedRuns, words: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(folder, tiny(rates=[0.1, 0.2], seeds=[1, 2]))
    assert main(command(path, *words.split())) == 2
    assert capsys.readouterr().err == f"hvd-async: {fault}\n"
    assert pretended.names == [] and not (folder / "out").exists()


def test_a_suite_of_one_stage_refuses_a_second(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(write(folder, tiny(seeds=[1, 2])), "--task", "0", "--stage", "2")) == 2
    assert "got 2, expected 1: the suite has no rates to choose from, or only one seed" in capsys.readouterr().err


# The second stage.


def loss_of(config: RunConfig) -> Sequence[float]:
    """Return losses with which 0.2 is the best rate for horovod and 0.4 for async; horovod diverges at the highest."""
    rate = config.optimizer.learning_rate
    if config.strategy.kind == "horovod":
        return {0.1: (4.0, 2.5), 0.2: (4.0, 2.0), 0.4: (1.0, math.nan)}[rate]
    return {0.1: (4.0, 3.5), 0.2: (4.0, 3.0), 0.4: (4.0, 2.5)}[rate]


def test_the_second_stage_uses_the_best_rate(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(folder, tiny(rates=[0.1, 0.4, 0.2], seeds=[7, 1]))
    in_place_of_processes(monkeypatch, pretended := PretendedRuns(loss_of))
    for number in (5, 3, 1, 0, 2):  # in any order; one is missing
        assert main(command(path, "--task", str(number))) == 0
    capsys.readouterr()
    assert main(command(path, "--stage", "2", "--task", "1")) == 0
    assert capsys.readouterr().out.splitlines()[0] == "n_1-0.4-s1: starts, 1 of 1"
    assert main(command(path, "--stage", "2", "--task", "0")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["missing: horovod-0.2-s7; the best rate of the others is 0.1", "horovod-0.1-s1: starts, 1 of 1"]
    assert main(command(path, "--task", "4")) == 0
    assert main(command(path, "--stage", "2", "--task", "0")) == 0
    assert pretended.names[5:] == ["n_1-0.4-s1", "horovod-0.1-s1", "horovod-0.2-s7", "horovod-0.2-s1"]
    capsys.readouterr()
    assert main(command(path, "--only", "*-0.4-*", "--stage", "2", "--task", "0")) == 0
    assert capsys.readouterr().out == "run 0 of stage 2: excluded by --only\n"


def test_the_second_stage_needs_the_first(
    folder: pathlib.Path, pretended: PretendedRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(folder, tiny(rates=[0.1, 0.2], seeds=[1, 2]))
    assert main(command(path, "--stage", "2", "--task", "0")) == 3
    names = "horovod-0.1-s1, horovod-0.2-s1"
    fault = (
        f"hvd-async: --task: {names}: got none of these runs, expected at least one that has ended; compute stage 1 first\n"
    )
    assert capsys.readouterr().err == fault and pretended.names == []


# Files that a task leaves.


def test_a_task_leaves_the_files_of_a_comparison_and_prints_the_output_of_the_run(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder, tiny())
    with task(path, 1) as process:
        output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    lines = output.splitlines()
    assert lines[0] == "n_1-s1: starts, 1 of 1" and lines[-1].startswith("finished: version ")
    with task(path, 1) as process:
        assert process.communicate(timeout=SECONDS)[0] == "n_1-s1: done before\n"
    assert process.returncode == 0
    in_place_of_processes(monkeypatch, compute_here)
    execute(path, folder / "whole")
    assert read_plan(folder / "out") == read_plan(folder / "whole")
    for file in ("events.jsonl", "summary.json", "models/last/model.safetensors"):
        assert (folder / "out/runs/n_1-s1" / file).read_bytes() == (folder / "whole/runs/n_1-s1" / file).read_bytes()
    assert [path.name for path in (folder / "out/runs").iterdir()] == ["n_1-s1"]


def test_a_task_whose_run_fails_has_its_exit_status_and_saves_the_fault(folder: pathlib.Path) -> None:
    variants = {"horovod": {"strategy.kind": "horovod"}, "bad": {"task.model.max_positions": 3}}
    path = write(folder, tiny(variants=variants))
    with task(path, 1) as process:
        output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert errors.startswith("hvd-async: ") and "max_positions" in errors
    fault = (folder / "out/faults/bad-s1.txt").read_text()
    assert fault == f"exit status 2: {' '.join(errors.split()).removeprefix('hvd-async: ')}\n"
    assert output.splitlines()[-1] == f"bad-s1: {fault.strip()}"
    assert read_collection(folder / "out").entries[1].fault == fault.strip()


def test_a_run_that_succeeds_but_leaves_no_summary_has_failed(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_processes(monkeypatch, lambda words: subprocess.CompletedProcess(list(words), 0, "", ""))
    assert main(command(write(folder, tiny()), "--task", "0")) == 3
    assert (folder / "out/faults/horovod-s1.txt").read_text() == "exit status 0: not run yet\n"


def test_a_task_whose_run_was_killed_has_the_matching_exit_status(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_place_of_processes(monkeypatch, lambda words: subprocess.CompletedProcess(list(words), -9, "", ""))
    assert main(command(write(folder, tiny()), "--task", "0")) == 137
    assert capsys.readouterr().out.splitlines()[-1] == "horovod-s1: exit status -9: no output on stderr"


def test_a_run_of_another_configuration_is_computed_again(
    folder: pathlib.Path, pretended: PretendedRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(write(folder, tiny()), "--task", "1")) == 0
    path = write(folder, tiny(variants={"horovod": {"strategy.kind": "horovod"}, "N = 1": {"optimizer.clip_norm": 1.0}}))
    capsys.readouterr()
    assert main(command(path, "--task", "1")) == 0
    line = "n_1-s1: was computed with another configuration, or by another version; computed again"
    assert capsys.readouterr().out.splitlines()[0] == line and pretended.names == ["n_1-s1"] * 2


def test_a_report_of_an_incomplete_suite_names_the_missing_runs(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = {"horovod": {"strategy.kind": "horovod"}, "N = 1": {"strategy.arrivals_per_update": 1}, "N = 2": {}}
    path = write(folder, tiny(variants=variants, seeds=[1, 2]))
    in_place_of_processes(monkeypatch, PretendedRuns(lambda config: [] if config.seed == 2 else (4.0, 2.0)))
    assert [main(command(path, "--task", number)) for number in "0134"] == [0, 0, 3, 3]
    capsys.readouterr()
    assert main(["report", str(folder / "out"), "--output", str(folder / "page")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "horovod and N = 1: 1 of 2 runs failed (seed 2)." in printed
    assert "N = 2: 2 of 2 runs not computed (seeds 1, 2)." in printed
    page = (folder / "page/report.md").read_text()
    assert "exit status 3: it failed" in page and page.count("not run yet") == 2


# Several tasks at once.


@pytest.mark.parametrize("is_same", [True, False])
def test_an_equal_plan_that_another_host_writes_at_the_same_time_is_accepted(
    folder: pathlib.Path, pretended: PretendedRuns, monkeypatch: pytest.MonkeyPatch, is_same: bool
) -> None:
    def write_and_lose_the_temporary_file(path: pathlib.Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if is_same else b"{}")
        raise DataError(f"{path}: cannot be written: No such file or directory")

    monkeypatch.setattr(plan, "write_file", write_and_lose_the_temporary_file)
    assert main(command(write(folder, tiny()), "--task", "0")) == (0 if is_same else 3)


def test_tasks_run_at_once(folder: pathlib.Path) -> None:
    path = write(folder, tiny(budget={"updates": 1_000_000}))  # never reached
    with task(path, 0) as first, task(path, 1) as second:
        for process, name in ((first, "horovod-s1"), (second, "n_1-s1")):
            until(events_of(folder / "out", name).exists, process)
        assert first.poll() is None and second.poll() is None
        children = [children_of(process.pid)[0] for process in (first, second)]
        for process in (first, second):
            process.send_signal(signal.SIGTERM)
        printed = [process.communicate(timeout=SECONDS)[1] for process in (first, second)]
    assert [first.returncode, second.returncode] == [143, 143]
    assert printed == ["hvd-async: compare: stopped by SIGTERM; run the same command again to resume\n"] * 2
    assert not any(map(is_alive, children)) and not (folder / "out/faults").exists()


def test_a_run_that_another_process_computes_is_not_computed(
    folder: pathlib.Path,
    pretended: PretendedRuns,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_SECONDS", 0.0)
    path = write(folder, tiny())
    busy = f"{folder / 'out/runs/horovod-s1'}: another process is at work there; wait for it or end it"
    with locked_by_another(folder / "out/.locks/horovod-s1"):
        assert main(command(path, "--task", "0")) == 3
        assert capsys.readouterr().err == f"hvd-async: {busy}\n"
        assert main(command(path)) == 3  # a plain comparison computes the other runs
        assert capsys.readouterr().err.splitlines()[-1] == f"hvd-async: {busy}"
    assert pretended.names == ["n_1-s1"] and not (folder / "out/faults").exists()


def test_a_task_does_not_wait_for_a_comparison_that_computes_another_run(
    folder: pathlib.Path, pretended: PretendedRuns
) -> None:
    with locked_by_another(folder / "out/.lock"):
        assert main(command(write(folder, tiny()), "--task", "0")) == 0
    assert pretended.names == ["horovod-s1"]


@pytest.mark.parametrize("words", [["--task", "0"], []])
def test_a_run_that_another_process_finishes_meanwhile_is_not_computed_again(
    folder: pathlib.Path,
    pretended: PretendedRuns,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    path, spec = write(folder, tiny()), Spec("all", "horovod", None, 1)
    holding = contextlib.ExitStack()
    holding.enter_context(locked_by_another(folder / "out/.locks/horovod-s1"))

    def end(_: float) -> None:
        pretended(Suite(path, folder / "out").command(spec))
        holding.close()

    monkeypatch.setattr(time, "sleep", end)  # the other process ends while we wait
    assert main(command(path, *words)) == 0
    assert pretended.names == ["horovod-s1", *([] if words else ["n_1-s1"])]
    assert f"{folder / 'out/runs/horovod-s1'}: waiting for another process to end" in capsys.readouterr().out


def test_without_locks_a_task_runs_and_prints_a_warning(
    folder: pathlib.Path,
    pretended: PretendedRuns,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert main(command(write(folder, tiny()), "--task", "0")) == 0
    line = (
        f"{folder / 'out/runs/horovod-s1'}: locking is not supported here (No locks available); make sure no other process"
        " uses this folder"
    )
    assert capsys.readouterr().out.splitlines()[0] == line and pretended.names == ["horovod-s1"]


# Tasks stopped and started again.


def wait_for_updates(process: subprocess.Popen[str]) -> None:
    """Wait until the run has made updates, so that there is something to save."""
    assert process.stdout is not None
    assert any("  version 2  " in line for line in process.stdout), process.communicate()


def batches_of(run: pathlib.Path) -> list[int]:
    return sorted(event["batch"] for event in read_events(run / "events.jsonl") if event["event"] == "arrival")


def slow_suite(folder: pathlib.Path, text: pathlib.Path) -> pathlib.Path:
    """Write a suite whose only run is a real one, in one process."""
    training = {"updates": 4, "tensorboard": False, "threads": 1, "log_every_seconds": 0.01}
    write_base(folder, text, training=training, emulation={"seconds": 0.05}, strategy={"kind": "single"})
    return write(folder, tiny(launcher="mpirun", budget={"updates": 60}, variants={"single": {}}, baseline="single"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_everything_and_the_same_task_resumes(
    folder: pathlib.Path, text: pathlib.Path, number: signal.Signals
) -> None:
    path, run = slow_suite(folder, text), folder / "out/runs/single-s1"
    with task(path, 0) as process:
        wait_for_updates(process)
        process.send_signal(number)
        output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + number, errors
    assert "everything saved" in output and errors.endswith(
        f"stopped by {number.name}; run the same command again to resume\n"
    )
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped"
    assert not (folder / "out/faults").exists()
    with task(path, 0) as process:
        output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    assert "single-s1: resumes, 1 of 1" in output.splitlines()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["updates"], summary["processes"]) == ("finished", 60, 2)
    assert batches_of(run) == list(range(60))


def test_the_run_of_a_killed_task_ends_and_is_waited_for(folder: pathlib.Path, text: pathlib.Path) -> None:
    path, run = slow_suite(folder, text), folder / "out/runs/single-s1"
    with task(path, 0) as process:
        until(events_of(folder / "out", "single-s1").exists, process)
        (child,) = children_of(process.pid)
        process.kill()
        with task(path, 0) as next_one:  # like a batch system, which knows nothing of what remains of the first
            output, errors = next_one.communicate(timeout=SECONDS)
    assert next_one.returncode == 0, errors
    assert not is_alive(child) and output.splitlines()[-2].startswith("finished: version 60, ")
    assert batches_of(run) == list(range(60))


@pytest.mark.mpi
def test_a_task_of_real_ranks_resumes(folder: pathlib.Path, text: pathlib.Path) -> None:
    training = {"updates": 4, "tensorboard": False, "threads": 1, "log_every_seconds": 0.01}
    write_base(folder, text, training=training, emulation={"seconds": 0.05}, strategy={"kind": "async"})
    path = write(folder, tiny(launcher="mpirun", budget={"updates": 60}, variants={"async": {}}, baseline="async"))
    with task(path, 0) as process:
        wait_for_updates(process)
        process.send_signal(signal.SIGUSR1)
        output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 138 and "everything saved" in output, errors
    with task(path, 0) as process:
        output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0 and "async-s1: resumes, 1 of 1" in output.splitlines(), errors
    assert output.splitlines()[-2].startswith("finished: version 60, ") and output.splitlines()[-1].startswith(
        "launch: done"
    )
