"""Locks between processes, and the folder of a run, into which only one job at a time may write."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from hvd_async.__main__ import main
from hvd_async.errors import DataError
from hvd_async.runs.folder import RunFolder
from hvd_async.system import locks
from hvd_async.system.locks import BusyError, locked
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.comparison.processes import until
from tests.mpi.runs import write_config
from tests.ranks import run_ranks
from tests.system.other_process import locked_by_another


def say_nothing(line: str) -> None:
    raise AssertionError(line)


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Make every lock fail with the given error number."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_free_lock_is_taken_silently_and_is_free_after_the_block(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a" / ".lock"
    for _ in range(2):
        with locked(path, "it", "another", say_nothing), path.open("ab") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_that_stays_held_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_SECONDS", 0.0)
    with (
        locked_by_another(tmp_path / ".lock"),
        pytest.raises(BusyError, match=r"^it: another is at work there; wait for it or end it$"),
        locked(tmp_path / ".lock", "it", "another", say_nothing),
    ):
        pass


def test_a_held_lock_is_waited_for_with_a_single_message(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holding, lines, naps = contextlib.ExitStack(), list[str](), list[float]()
    holding.enter_context(locked_by_another(tmp_path / ".lock"))

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            holding.close()

    monkeypatch.setattr(time, "sleep", sleep)
    with locked(tmp_path / ".lock", "it", "another", lines.append):
        assert lines == ["it: waiting for another to end"] and len(naps) == 3


def test_a_lock_is_not_waited_for_once_its_purpose_is_over(tmp_path: pathlib.Path) -> None:
    with (
        locked_by_another(tmp_path / ".lock"),
        pytest.raises(BusyError),
        locked(tmp_path / ".lock", "it", "another", say_nothing, is_over=lambda: True),
    ):
        pass


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_held_lock_is_recognised_on_any_file_system(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_SECONDS", 0.0)
    refuse(monkeypatch, number)
    with pytest.raises(BusyError), locked(tmp_path / ".lock", "it", "another", say_nothing):
        pass


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_failing_file_system_is_not_taken_for_another_process(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse(monkeypatch, number)
    with pytest.raises(DataError) as caught, locked(tmp_path / ".lock", "it", "another", say_nothing):
        pass
    assert not isinstance(caught.value, BusyError)
    assert str(caught.value).startswith(f"{tmp_path / '.lock'}: cannot be locked: {os.strerror(number)}; ")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_the_block_runs_and_a_warning_is_printed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse(monkeypatch, number)
    lines: list[str] = []
    with locked(tmp_path / ".lock", "it", "another", lines.append):
        pass
    assert lines == [
        f"it: locking is not supported here ({os.strerror(number)}); make sure no other process uses this folder"
    ]


def test_a_file_that_cannot_be_written_cannot_be_locked(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"file/\.lock: cannot be written: "),
        locked(tmp_path / "file" / ".lock", "it", "another", say_nothing),
    ):
        pass


HOLDER = """
import pathlib, subprocess, sys
from hvd_async.system.locks import locked
with locked(pathlib.Path(sys.argv[1]), "it", "another", print):
    child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, close_fds=False)
    print(child.pid, flush=True)
    child.wait()
"""


def test_a_lock_ends_with_its_process_even_if_a_child_lives_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_SECONDS", 0.0)
    path = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            with pytest.raises(BusyError), locked(path, "it", "another", say_nothing):
                pass
            process.kill()
            process.wait()
            os.kill(child, 0)  # the child is alive
            with locked(path, "it", "another", say_nothing):
                pass
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


# The folder of a run.


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    write_corpus(tmp_path / "text", train=120, validation=8, test=8)
    training = {"weight": None, "updates": 4, "threads": 1}
    return write_config(tmp_path, training=training, validation={"every": None}, metrics=[])


def content_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("flag", ["", "--resume", "--overwrite", "--auto-resume"])
def test_a_run_in_progress_is_left_alone(
    config: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_SECONDS", 0.0)
    folder = RunFolder(config.parent / "run")
    assert main(["train", str(config)]) == 0
    (folder.checkpoints / "v00000004" / "data.json").unlink()  # --auto-resume must not look at it before it has the lock
    before = content_of(folder.root)
    with locked_by_another(folder.lock):
        assert main(["train", str(config), *([flag] if flag else [])]) == DataError.exit_status
    assert capsys.readouterr().err.splitlines() == [
        f"hvd-async: {folder.root}: in use by another process; wait for it, end it, or set another output"
    ]
    assert content_of(folder.root) == before


def test_a_run_that_has_ended_or_failed_releases_its_folder(config: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_SECONDS", 0.0)
    assert main(["train", str(config)]) == 0
    assert main(["train", str(config)]) == 2  # the folder holds a run
    assert main(["train", str(config), "--overwrite"]) == 0
    with locked(config.parent / "run/.lock", "it", "another", say_nothing):
        pass


def test_without_locks_a_run_prints_a_warning_and_continues(
    config: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse(monkeypatch, errno.ENOLCK)
    assert main(["train", str(config)]) == 0
    run = config.parent / "run"
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0] == f"{run}: locking is not supported here (No locks available); make sure no other process uses this folder"
    )


@pytest.mark.parametrize("exists", [True, False])
def test_without_anything_to_resume_no_lock_is_left(config: pathlib.Path, exists: bool) -> None:
    run = config.parent / "run"
    if exists:
        run.mkdir()
    assert main(["train", str(config), "--resume"]) == 5
    assert list(run.iterdir()) == [] if exists else not run.exists()


def test_a_second_start_waits_and_restarts_the_run_that_was_killed(config: pathlib.Path) -> None:
    run = RunFolder(config.parent / "run")
    command = [sys.executable, "-m", "hvd_async", "train", str(config), "--auto-resume", "--set"]

    def start(setting: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*command, setting], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    with start("training.updates=1000000") as first:
        until(run.events.exists, first)  # it trains, and saves no checkpoint
        with start("training.updates=4") as second:
            try:
                assert second.stdout is not None
                printed = second.stdout.readline()
                assert printed == f"{run.root}: waiting for another process to end\n"
                assert first.poll() is None and not run.summary.exists()
                first.kill()
                output, _ = second.communicate(timeout=120)
            finally:
                first.kill()
                second.kill()
    assert second.returncode == 0, output
    lines = output.splitlines()
    assert " begins again; " in lines[0] and lines[-1].startswith("finished: version 4, ")
    assert json.loads(run.summary.read_text())["processes"] == 1


IMPATIENT = """
import sys
from hvd_async.system import locks
from hvd_async.__main__ import main
locks._PATIENCE_SECONDS = 0.0
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.mpi
def test_all_ranks_fail_and_one_of_them_reports_why(config: pathlib.Path) -> None:
    run = config.parent / "run"
    with locked_by_another(run / ".lock"):
        done = run_ranks(3, ["-c", IMPATIENT, str(config), "--set", "strategy.kind=async"], timeout=120.0)
    assert not done.timed_out and done.returncode == DataError.exit_status, str(done)
    assert done.stderr.count("in use by another process") == 1, str(done)
    assert [path.name for path in run.iterdir()] == [".lock"]
