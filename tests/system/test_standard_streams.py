"""Standard input, output and error of commands started by a shell: one line, the right status, UTF-8 in any locale."""

from __future__ import annotations

import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from hvd_async.__main__ import main, report
from hvd_async.errors import StoppedBySignal

COMMAND = f"{shlex.quote(sys.executable)} -m hvd_async"
# Cheap commands that print; one of them also writes files.
PRINTING = ("--help", "train --help", "data builtin --help", "data builtin --output out --train 3 --validation 2 --test 2")
CONFIG = "output: runs/Ü\ntask: {data: {folder: data}}\ntraining: {epochs: 1}\n"


def shell(text: str, folder: pathlib.Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell, in which `$H` stands for `hvd-async`."""
    environ = {**os.environ, "H": COMMAND, "PYTHONPATH": str(pathlib.Path(__file__).parents[2]), "PYTHONUNBUFFERED": ""}
    return subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env={**environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", PRINTING)
def test_a_full_disk_under_the_output_is_reported_in_one_line(
    arguments: str, unbuffered: str, tmp_path: pathlib.Path
) -> None:
    done = shell(f"$H {arguments} > /dev/full", tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (3, b"hvd-async: standard output: cannot be written: No space left on device\n")


@pytest.mark.parametrize("arguments", PRINTING)
def test_a_closed_output_is_refused_before_anything_is_done(arguments: str, tmp_path: pathlib.Path) -> None:
    done = shell(f"$H {arguments} >&-", tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith(b"hvd-async: standard output: closed; expected") and done.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", PRINTING)
def test_a_reader_that_has_gone_causes_no_message(arguments: str, tmp_path: pathlib.Path) -> None:
    # The reader is gone before there is anything to read: it only opens the pipe.
    done = shell(f"mkfifo p; (: < p) & exec 3> p; wait; $H {arguments} >&3", tmp_path)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full"])
def test_without_standard_error_the_status_is_still_right(redirection: str, tmp_path: pathlib.Path) -> None:
    done = shell(f"$H train nowhere.yaml {redirection}", tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")


def test_without_standard_input_no_file_takes_its_descriptor(tmp_path: pathlib.Path) -> None:
    done = shell(f"$H {PRINTING[-1]} <&- 2>&-", tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "out" / "train.en").read_text().count("\n") == 3


@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}])
def test_text_is_utf_8_in_any_locale(environment: dict[str, str], tmp_path: pathlib.Path) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG, encoding="utf-8")
    arguments = "launch run.yaml --dry-run --mpi openmpi --slurm --set output=runs/ä"
    done = shell(
        f"$H {arguments}; $H launch run.yaml --set task.data.wö=1", tmp_path, **{"PYTHONCOERCECLOCALE": "0", **environment}
    )
    assert "output=runs/ä".encode() in done.stdout
    assert done.returncode == 2 and "wö".encode() in done.stderr


@pytest.mark.parametrize(
    "variables", [{"RANK": "1", "WORLD_SIZE": "2"}, {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}]
)
@pytest.mark.parametrize(
    ("arguments", "status"), [(["translate", "nowhere"], 3), (["compare", "nowhere.yaml"], 2), (["report", "nowhere"], 3)]
)
def test_a_rank_that_is_not_the_first_reports_its_own_faults(
    arguments: list[str],
    status: int,
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == status
    assert "nowhere" in capsys.readouterr().err


def test_faults_of_a_configuration_that_all_ranks_read_are_reported_by_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for rank in ("0", "1"):
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", rank)
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
        assert main(["train", "nowhere.yaml"]) == 2
        printed.append(capsys.readouterr().err.count("nowhere.yaml"))
    assert printed == [1, 0]


def test_a_stop_of_all_ranks_is_reported_by_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> int:
        raise StoppedBySignal("stopped", 15)

    printed = []
    for rank in ("0", "1"):
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", rank)
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
        assert report(stop) == 143
        printed.append(capsys.readouterr().err)
    assert printed == ["hvd-async: stopped\n", ""]


def test_a_leftover_rank_variable_silences_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
