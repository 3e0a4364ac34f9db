"""Computing a suite: each run once, in turns, despite failures, and with the same result however often it is interrupted."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import pathlib
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from hvd_async.__main__ import main
from hvd_async.comparison.plan import read_collection, read_plan
from hvd_async.comparison.runs import read_run
from hvd_async.config import RunConfig
from hvd_async.errors import CheckpointError, ConfigError, DataError
from hvd_async.system import locks
from tests.comparison.processes import SECONDS, children_of, compare, events_of, is_alive, state_of, until
from tests.comparison.tiny import (
    PretendedRuns,
    compute_here,
    execute,
    in_place_of_processes,
    tiny,
    write,
    write_base,
)
from tests.mpi.runs import losses_of


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are computed in this process."""
    in_place_of_processes(monkeypatch, compute_here)


def files_below(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def names_in(output: pathlib.Path) -> list[str]:
    return sorted(path.name for path in (output / "runs").iterdir())


# Where runs are computed.


def test_the_device_of_simulated_runs_is_passed_on(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = str(write(folder, tiny()))
    assert main(["compare", suite, "--device", "cpu", "--dry-run"]) == 0
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert len(commands) == 2 and all(line.endswith(" --device cpu") for line in commands)
    assert main(["compare", suite, "--device", "cuda", "--slurm"]) == 2
    assert "expected --gpus-per-node with it" in capsys.readouterr().err
    assert main(["compare", suite, "--device", "cuda", "--slurm", "--gpus-per-node", "1"]) == 0
    assert 'options=(--device cuda "$@")' in capsys.readouterr().out
    assert main(["compare", suite, "--device", "cuda:99", "--count"]) == 0
    assert main(["compare", suite, "--device", "cuda:99", "--output", str(folder / "out")]) == 4
    assert main(["compare", str(write(folder, tiny(launcher="mpirun"))), "--device", "cpu"]) == 2
    assert "--device: got cpu for a suite with launcher mpirun" in capsys.readouterr().err
    assert not (folder / "out").exists()


# Which runs are computed.


def test_runs_are_computed_once_and_one_that_fails_does_not_stop_the_others(
    folder: pathlib.Path, in_this_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = {"horovod": {"strategy.kind": "horovod"}, "bad": {"task.model.max_positions": 3}, "N = 1": {}}
    command = ["compare", str(write(folder, tiny(variants=variants))), "--output", str(folder / "out")]
    assert main(command) == 3
    first = capsys.readouterr()
    assert first.err.splitlines()[0] == "hvd-async: runs that failed:"
    assert first.err.splitlines()[1].startswith("hvd-async: bad-s1: exit status 2: ") and "max_positions" in first.err
    assert len(first.err.splitlines()) == 2
    lines = first.out.splitlines()
    assert lines[0] == f"3 of 3 runs to be computed in {folder / 'out'}"
    assert lines[1] == "horovod-s1: starts, 1 of 3"
    assert lines[2].startswith("horovod-s1: finished: version 6, 2,0")
    assert lines[3] == "bad-s1: starts, 2 of 3" and lines[5] == "n_1-s1: starts, 3 of 3"
    fault = (folder / "out/faults/bad-s1.txt").read_text()
    assert fault.startswith("exit status 2: ") and fault.count("\n") == 1
    entries = read_collection(folder / "out").entries
    assert [(entry.variant, entry.run is not None) for entry in entries] == [
        ("horovod", True),
        ("bad", False),
        ("N = 1", True),
    ]
    assert entries[1].fault == fault.strip()
    assert fault.strip()[:60] in (folder / "out/report/report.md").read_text()

    whole = files_below(folder / "out/runs/horovod-s1")
    (folder / "out/runs/n_1-s1/summary.json").unlink()  # as if it had been interrupted
    assert main(command) == 3
    second = capsys.readouterr().out.splitlines()
    assert second[0] == f"2 of 3 runs to be computed in {folder / 'out'}"
    assert [line for line in second if ": starts, " in line] == ["bad-s1: starts, 1 of 2", "n_1-s1: starts, 2 of 2"]
    assert files_below(folder / "out/runs/horovod-s1") == whole


def test_a_run_that_failed_is_forgotten_when_it_succeeds(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, tiny())
    in_place_of_processes(monkeypatch, PretendedRuns(lambda config: [] if config.strategy.kind == "async" else [2.0]))
    failures, lines = execute(path, folder / "out")
    assert failures == ["n_1-s1: exit status 3: it failed"] and lines[-1] == failures[0]
    in_place_of_processes(monkeypatch, pretended := PretendedRuns())
    assert execute(path, folder / "out")[0] == []
    assert pretended.names == ["n_1-s1"] and not list((folder / "out/faults").iterdir())


def test_a_run_that_succeeds_but_leaves_no_summary_has_failed(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_processes(monkeypatch, lambda words: subprocess.CompletedProcess(list(words), 0, "fine\n", ""))
    failures, _ = execute(write(folder, tiny()), folder / "out")
    assert failures == ["horovod-s1: exit status 0: not run yet", "n_1-s1: exit status 0: not run yet"]


def test_a_finished_run_counts_with_every_strategy(folder: pathlib.Path, in_this_process: None) -> None:
    kinds = {
        "horovod": {"kind": "horovod"},
        "ddp": {"kind": "ddp"},
        "single": {"kind": "single"},
        "async": {"kind": "async", "lockstep": True},
    }
    suite = tiny(variants={name: {"strategy": keys} for name, keys in kinds.items()}, budget={"updates": 1})
    # On several nodes; the workers of each node are counted from the log.
    path = write(folder, {**suite, "workers": 3, "set": {"simulation": {"workers_per_node": 2}, "training.threads": 1}})
    assert len(execute(path, folder / "out")[1]) == 8
    assert execute(path, folder / "out") == ([], [])
    workers = [entry.run.num_workers for entry in read_collection(folder / "out").entries if entry.run is not None]
    assert workers == [3, 3, 1, 3]


def test_a_run_of_another_configuration_is_computed_again(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_processes(monkeypatch, pretended := PretendedRuns())
    execute(write(folder, tiny()), folder / "out")
    path = write(folder, tiny(variants={"horovod": {"strategy.kind": "horovod"}, "N = 1": {"optimizer.clip_norm": 1.0}}))
    _, lines = execute(path, folder / "out")
    assert pretended.names == ["horovod-s1", "n_1-s1", "n_1-s1"]
    assert lines[0] == "n_1-s1: was computed with another configuration, or by another version; computed again"
    assert read_collection(folder / "out").entries[1].run is not None


def test_a_run_with_another_log_interval_is_not_computed_again(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place_of_processes(monkeypatch, pretended := PretendedRuns())
    execute(write(folder, tiny(set={"training.log_every_seconds": 5})), folder / "out")
    execute(write(folder, tiny(set={"training.log_every_seconds": 10})), folder / "out")
    execute(write(folder, tiny(set={})), folder / "out")
    assert pretended.names == ["horovod-s1", "n_1-s1"]


def test_a_run_of_another_configuration_does_not_count(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_processes(monkeypatch, PretendedRuns())
    execute(write(folder, tiny()), folder / "out")
    in_place_of_processes(monkeypatch, PretendedRuns(lambda _: []))
    variants = {"horovod": {"strategy.kind": "horovod"}, "N = 1": {"optimizer.clip_norm": 1.0}}
    path = write(folder, tiny(variants=variants, launcher="mpirun"))
    execute(path, folder / "out", only=["horovod"])
    faults = [entry.fault for entry in read_collection(folder / "out").entries]
    # The failed attempt leaves the previous run in place: that is not the reason for its absence.
    assert faults == ["exit status 3: it failed", "was computed with another configuration, or by another version"]


@pytest.mark.parametrize("change", [{"workers": 3}, {"launcher": "horovodrun-mpi"}, {"launcher": "simulate"}])
def test_a_run_with_another_number_of_workers_is_computed_again(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    write_base(folder, folder / "text", simulation={"workers": 2})
    in_place_of_processes(monkeypatch, pretended := PretendedRuns())
    execute(write(folder, tiny(launcher="mpirun")), folder / "out", only=["horovod"])
    # The log records with how many workers the run was started.
    start = {"event": "start", "seconds": 0.0, "node_workers": [[0, 1]]}
    (folder / "out/runs/horovod-s1/events.jsonl").write_text(json.dumps(start) + "\n")
    execute(write(folder, tiny(**{"launcher": "mpirun", **change})), folder / "out", only=["horovod"])
    assert len(pretended.names) == (1 if change == {"launcher": "horovodrun-mpi"} else 2)


def test_a_damaged_run_is_computed_again(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_processes(monkeypatch, pretended := PretendedRuns())
    path = write(folder, tiny())
    execute(path, folder / "out")
    (folder / "out/runs/horovod-s1/summary.json").write_text("{")
    (folder / "out/runs/n_1-s1/config.yaml").write_text("nonsense: 1")
    entries = read_collection(folder / "out").entries
    assert (
        entries[0].fault.startswith("not finished: ")
        and entries[1].fault == "was computed with another configuration, or by another version"
    )
    execute(path, folder / "out")
    assert pretended.names == ["horovod-s1", "n_1-s1"] * 2


# Rates, seeds and turns.


def loss_of(config: RunConfig) -> Sequence[float]:
    """Return losses with which 0.2 is the best rate for horovod and 0.4 for async; horovod diverges at the highest."""
    rate = config.optimizer.learning_rate
    if config.strategy.kind == "horovod":
        return {0.1: (4.0, 2.5), 0.2: (4.0, 2.0), 0.4: (1.0, math.nan)}[rate]
    return {0.1: (4.0, 3.5), 0.2: (4.0, 3.0), 0.4: (4.0, 2.5)}[rate]


def test_every_rate_is_tried_with_the_first_seed_and_the_best_with_the_others(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder, tiny(rates=[0.1, 0.4, 0.2], seeds=[7, 1]))
    in_place_of_processes(monkeypatch, pretended := PretendedRuns(loss_of))
    failures, lines = execute(path, folder / "out")
    assert failures == []
    assert pretended.names == [
        *("horovod-0.1-s7", "n_1-0.1-s7", "horovod-0.4-s7", "n_1-0.4-s7", "horovod-0.2-s7", "n_1-0.2-s7"),
        *("horovod-0.2-s1", "n_1-0.4-s1"),
    ]
    numbers = [line.rpartition(", ")[2] for line in lines if ": starts, " in line]
    assert numbers == [*(f"{number} of 6" for number in range(1, 7)), "7 of 8", "8 of 8"]
    assert "horovod-0.4-s7: diverged; finished: pretended" in lines
    collection = read_collection(folder / "out")
    chosen = [(e.variant, e.rate, e.seed) for e in collection.entries if e.is_chosen]
    assert chosen == [("horovod", 0.2, 7), ("horovod", 0.2, 1), ("N = 1", 0.4, 7), ("N = 1", 0.4, 1)]
    # The first seed has all rates; the second seed needs only the best one.
    assert len(collection.entries) == 8 and all(entry.run is not None for entry in collection.entries)


def test_without_a_best_rate_there_are_no_other_seeds(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_processes(monkeypatch, pretended := PretendedRuns(lambda _: []))
    failures, _ = execute(write(folder, tiny(rates=[0.1, 0.2], seeds=[1, 2])), folder / "out")
    assert len(failures) == len(pretended.names) == 4 and not any(name.endswith("-s2") for name in pretended.names)
    collection = read_collection(folder / "out")
    assert collection.target is None
    missing = [(e.variant, e.rate, e.seed, e.fault) for e in collection.entries if e.is_chosen and e.seed == 2]
    assert missing == [("horovod", 0.1, 2, "not run yet"), ("N = 1", 0.1, 2, "not run yet")]


def test_if_all_rates_diverged_the_first_is_shown(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_processes(monkeypatch, pretended := PretendedRuns(lambda _: (math.nan, math.inf)))
    assert execute(write(folder, tiny(rates=[0.4, 0.1], seeds=[1, 2])), folder / "out")[0] == []
    assert pretended.names[4:] == ["horovod-0.4-s2", "n_1-0.4-s2"]
    assert [e.run.has_diverged for e in read_collection(folder / "out").entries if e.run] == [True] * 6


def test_variants_take_turns_so_that_changes_of_the_machine_affect_all(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = {name: {"optimizer.clip_norm": clip} for name, clip in (("A", 1.0), ("B", 2.0), ("C", 3.0))}
    path = write(folder, tiny(variants=variants, baseline="A", seeds=[1, 2]))
    in_place_of_processes(monkeypatch, pretended := PretendedRuns())
    execute(path, folder / "out")
    assert pretended.names == ["a-s1", "b-s1", "c-s1", "a-s2", "b-s2", "c-s2"]


@pytest.mark.parametrize(
    ("only", "names"),
    [
        (["horovod"], ["a-horovod-s1", "b-horovod-s1", "a-horovod-s2", "b-horovod-s2"]),
        (["b"], ["b-horovod-s1", "b-n_1-s1", "b-horovod-s2", "b-n_1-s2"]),
        (["*-s2", "N = ?"], ["a-n_1-s1", "b-n_1-s1", "a-horovod-s2", "a-n_1-s2", "b-horovod-s2", "b-n_1-s2"]),
        (["a-n_1-s1"], ["a-n_1-s1"]),
    ],
)
def test_only_selects_runs_variants_and_environments(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, only: list[str], names: list[str]
) -> None:
    in_place_of_processes(monkeypatch, pretended := PretendedRuns())
    execute(write(folder, tiny(environments={"a": {}, "b": {}}, seeds=[1, 2])), folder / "out", only=only)
    assert pretended.names == names
    entries = read_collection(folder / "out").entries
    assert len(entries) == 8 and [e.fault for e in entries].count("not run yet") == 8 - len(names)


def test_a_pattern_that_matches_nothing_is_refused(folder: pathlib.Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--only: got 'ddp', which matches no run, variant or environment; variants are horovod, N = 1"
    ):
        execute(write(folder, tiny()), folder / "out", only=["horovod", "ddp"])
    assert not (folder / "out").exists()


def test_a_dry_run_computes_nothing_and_prints_commands_that_run(
    folder: pathlib.Path, in_this_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        folder, tiny(seeds=[1, 2], rates=[0.001, 0.002], set={"task.model.dropout": 0.0, "task.data.train": "train"})
    )
    command = ["compare", str(path), "--output", str(folder / "out"), "--dry-run", "--only", "horovod"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not (folder / "out").exists()
    assert lines[-1] == "2 of 2 runs to be computed; other seeds follow at each variant's best rate"
    assert lines[0] == "horovod-0.001-s1: not run yet" and lines[2] == "horovod-0.002-s1: not run yet"
    for line in (lines[1], lines[3]):
        program, *words = shlex.split(line)
        assert program == "hvd-async" and main(words) == 0
    capsys.readouterr()
    assert main(command) == 0  # a run computed by hand counts
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["horovod-0.001-s1: done", "horovod-0.002-s1: done"]
    assert lines[2].endswith("-s2: not run yet") and lines[-1].startswith("1 of 3 runs to be computed")


def test_several_jobs_run_at_a_time(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(2, timeout=SECONDS)  # each run waits for the other of its pair

    def losses(_: RunConfig) -> Sequence[float]:
        meeting.wait()
        return (4.0, 2.0)

    in_place_of_processes(monkeypatch, pretended := PretendedRuns(losses))
    failures, lines = execute(write(folder, tiny(seeds=[1, 2])), folder / "out", jobs=2)
    assert failures == [] and sorted(pretended.names) == ["horovod-s1", "horovod-s2", "n_1-s1", "n_1-s2"]
    numbers = sorted(line.rpartition(", ")[2] for line in lines if ": starts, " in line)
    assert numbers == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]


# Resuming runs.


def leave_checkpoint(output: pathlib.Path, name: str) -> None:
    """Make the run look as if it had been killed after a checkpoint."""
    (output / "runs" / name / "summary.json").unlink()
    (output / "runs" / name / "checkpoints/v00000002").mkdir(parents=True)


def start_flags(pretended: PretendedRuns) -> list[str]:
    return ["resume" if "--resume" in words else "overwrite" for words in pretended.arguments]


def test_a_real_run_resumes_from_its_checkpoint(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, tiny(launcher="mpirun"))
    in_place_of_processes(monkeypatch, pretended := PretendedRuns())
    execute(path, folder / "out")
    leave_checkpoint(folder / "out", "horovod-s1")
    _, lines = execute(path, folder / "out")
    assert start_flags(pretended) == ["overwrite", "overwrite", "resume"]
    assert lines[0] == "horovod-s1: resumes, 1 of 1"


@pytest.mark.parametrize("change", [{"set": {"task.label_smoothing": 0.1}}, {"workers": 3}])
def test_the_checkpoint_of_another_run_is_not_used(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    in_place_of_processes(monkeypatch, pretended := PretendedRuns())
    execute(write(folder, tiny(launcher="mpirun")), folder / "out", only=["horovod"])
    leave_checkpoint(folder / "out", "horovod-s1")
    start = {"event": "start", "seconds": 0.0, "node_workers": [[0], [1]]}
    (folder / "out/runs/horovod-s1/events.jsonl").write_text(json.dumps(start) + "\n")
    _, lines = execute(write(folder, tiny(launcher="mpirun", **change)), folder / "out", only=["horovod"])
    assert start_flags(pretended) == ["overwrite", "overwrite"]
    assert lines[0] == "horovod-s1: was computed with another configuration, or by another version; computed again"


def test_a_simulated_run_starts_again(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_processes(monkeypatch, pretended := PretendedRuns())
    execute(write(folder, tiny()), folder / "out")
    leave_checkpoint(folder / "out", "horovod-s1")
    execute(write(folder, tiny()), folder / "out")
    assert start_flags(pretended) == ["overwrite"] * 3


def test_a_run_whose_checkpoint_is_damaged_starts_again(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, tiny(launcher="mpirun"))
    in_place_of_processes(monkeypatch, pretended := PretendedRuns())
    execute(path, folder / "out")
    leave_checkpoint(folder / "out", "horovod-s1")

    def compute(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        if "--resume" in words:
            return subprocess.CompletedProcess(list(words), CheckpointError.exit_status, "", "hvd-async: it is damaged\n")
        return pretended(words)

    in_place_of_processes(monkeypatch, compute)
    failures, lines = execute(path, folder / "out")
    assert failures == [] and start_flags(pretended) == ["overwrite"] * 3
    assert lines[1] == "horovod-s1: cannot resume (hvd-async: it is damaged); computed again"


# One process at a time may use the folder.


@contextlib.contextmanager
def locked(output: pathlib.Path) -> Iterator[None]:
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_folder_in_use_by_another_process_is_refused(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_SECONDS", 0.0)
    path = write(folder, tiny())
    with locked(folder / "out"), pytest.raises(DataError) as raised:
        execute(path, folder / "out")
    assert str(raised.value) == (
        f"{folder / 'out'}: another hvd-async compare, or a run of it, is at work there; wait for it or end it"
    )
    assert [path.name for path in (folder / "out").iterdir()] == [".lock"]  # its plan is not replaced by ours


def test_a_folder_in_use_is_waited_for_briefly(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_processes(monkeypatch, PretendedRuns())
    holding = contextlib.ExitStack()
    holding.enter_context(locked(folder / "out"))
    monkeypatch.setattr(time, "sleep", lambda _: holding.close())  # the other process ends while we wait
    failures, lines = execute(write(folder, tiny()), folder / "out")
    assert failures == [] and names_in(folder / "out") == ["horovod-s1", "n_1-s1"]
    assert lines[0] == f"{folder / 'out'}: waiting for another hvd-async compare, or a run of it, to end"
    assert sum("waiting for" in line for line in lines) == 1


# Interruptions, with real processes.


def test_a_signal_ends_the_suite_and_its_run(folder: pathlib.Path) -> None:
    path = write(folder, tiny(budget={"updates": 1_000_000}))  # never reached
    with compare(path, folder / "out") as parent:
        until(events_of(folder / "out", "horovod-s1").exists, parent)
        running = children_of(parent.pid)
        parent.send_signal(signal.SIGTERM)
        output, errors = parent.communicate(timeout=SECONDS)
    assert parent.returncode == 143
    assert errors == "hvd-async: compare: stopped by SIGTERM; finished runs are kept; run the same command again to resume\n"
    assert output.splitlines()[1:] == ["horovod-s1: starts, 1 of 2"]
    assert len(running) == 1 and not is_alive(running[0])
    assert not (folder / "out/faults").exists() and not (folder / "out/report").exists()


def test_a_run_ends_with_a_killed_suite_and_then_frees_the_folder(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The run prints nothing: otherwise it would end because nothing reads its output.
    path = write(folder, tiny(budget={"updates": 1_000_000}, set={"training.log_every_seconds": 1e6}))
    with compare(path, folder / "out") as parent:
        until(events_of(folder / "out", "horovod-s1").exists, parent)
        (child,) = children_of(parent.pid)
        try:
            os.kill(child, signal.SIGSTOP)  # makes it outlive its parent for as long as the test needs
            until(lambda: state_of(child) == "T")  # otherwise SIGTERM, which has a lower number, would come first
            parent.kill()
            parent.communicate()
            in_place_of_processes(monkeypatch, PretendedRuns())
            monkeypatch.setattr(locks, "_PATIENCE_SECONDS", 0.0)
            with pytest.raises(DataError, match="another hvd-async compare, or a run of it, is at work there"):
                execute(path, folder / "out")
            assert is_alive(child)
            os.kill(child, signal.SIGCONT)
            until(lambda: not is_alive(child))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    monkeypatch.setattr(locks, "_PATIENCE_SECONDS", SECONDS)  # its last thread may still be ending
    in_place_of_processes(monkeypatch, compute_here)
    failures, _ = execute(write(folder, tiny()), folder / "out")
    assert failures == [] and names_in(folder / "out") == ["horovod-s1", "n_1-s1"]


def test_a_suite_that_was_killed_gives_the_same_results_to_the_last_byte(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough to be killed in the middle of a run.
    path = write(folder, tiny(budget={"weight": 30_000}, measure_every=10_000, target={"loss": 5.9}))
    broken, whole = folder / "broken", folder / "whole"
    first, second = events_of(broken, "horovod-s1"), events_of(broken, "n_1-s1")
    moments: list[tuple[Callable[[], bool], bool]] = [
        (lambda: first.exists() and first.stat().st_size > 0, False),
        ((first.parent / "summary.json").exists, True),
        (lambda: second.exists() and second.stat().st_size > 0, False),
    ]
    for has_come, is_group in moments:
        with compare(path, broken) as parent:
            until(has_come, parent)
            os.killpg(parent.pid, signal.SIGKILL) if is_group else parent.kill()
            parent.communicate()
    in_place_of_processes(monkeypatch, compute_here)
    for output in (broken, whole):
        assert main(["compare", str(path), "--output", str(output)]) == 0
    assert read_plan(broken) == read_plan(whole)
    for name in ("horovod-s1", "n_1-s1"):
        for file in ("events.jsonl", "summary.json", "models/last/model.safetensors"):
            assert (broken / "runs" / name / file).read_bytes() == (whole / "runs" / name / file).read_bytes()
    report = files_below(whole / "report")
    assert "runs.csv" in report and files_below(broken / "report") == report


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.timeout(900)  # two runs, each started three times, on real ranks
def test_real_runs_resume_from_their_checkpoints(folder: pathlib.Path, text: pathlib.Path) -> None:
    write_base(
        folder,
        text,
        training={"updates": 4, "tensorboard": False, "threads": 1, "checkpoint_every": 5},
        emulation={"seconds": 0.05},
        strategy={"kind": "async", "arrivals_per_update": 2},
    )
    variants = {"horovod": {"strategy.kind": "horovod"}, "async": {}}
    path = write(folder, tiny(launcher="mpirun", budget={"updates": 40}, variants=variants))
    with compare(path, folder / "whole") as parent:
        _, errors = parent.communicate(timeout=2 * SECONDS)
        assert parent.returncode == 0, errors
    for name in ("horovod-s1", "async-s1"):
        run = folder / "broken/runs" / name
        with compare(path, folder / "broken") as parent:
            until(lambda run=run: any((run / "checkpoints").glob("v*")), parent)  # type: ignore[misc]
            parent.send_signal(signal.SIGTERM)
            _, errors = parent.communicate(timeout=SECONDS)
            assert parent.returncode == 143, errors
        assert json.loads((run / "summary.json").read_text())["status"] == "stopped"
    with compare(path, folder / "broken") as parent:
        output, errors = parent.communicate(timeout=2 * SECONDS)
    assert parent.returncode == 0, errors
    assert "async-s1: resumes, 1 of 1" in output.splitlines()
    for name in ("horovod-s1", "async-s1"):
        found = read_run(folder / "broken/runs" / name)
        assert (found.status, found.updates, found.num_workers) == ("finished", 40, 2)
    horovod = [losses_of(folder / output / "runs/horovod-s1") for output in ("broken", "whole")]
    assert len(horovod[0]) == 40 and horovod[0] == horovod[1]
