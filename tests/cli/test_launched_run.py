"""What `launch` knows of the run of a script, from what its rank 0 tells."""

from __future__ import annotations

import json
import os
import pathlib

import pytest

from hvd_async.cli.launched_run import LaunchedRun
from hvd_async.config import RunConfig, ScriptConfig, parse_config
from hvd_async.runs.folder import RunFolder
from hvd_async.script.run import _tell_launch
from hvd_async.system.launch_page import SCRIPT_VARIABLE
from hvd_async.system.shared_memory import Place


@pytest.fixture
def config() -> RunConfig:
    tree = {"output": "unknown", "training": {"epochs": 1}, "task": {"kind": "script"}}
    found = parse_config(tree, source="made")
    assert isinstance(found.task, ScriptConfig)
    return found


def made(folder: pathlib.Path, status: str = "") -> RunFolder:
    """Begin a run in `folder`, and end it with `status`."""
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    run.config.write_text("its own")
    if status:
        (folder / "new").write_text(f'{{"status": "{status}"}}')
        (folder / "new").rename(run.summary)
    return run


def status_of(launched: LaunchedRun) -> str | None:
    assert launched.summary is not None
    return launched.summary.status()


def test_of_two_runs_one_after_another_the_second_counts(config: RunConfig, tmp_path: pathlib.Path) -> None:
    with LaunchedRun(config) as launched:
        launched.begin()
        assert launched.folder is None and launched.summary is None and not launched.has_begun()
        _tell_launch(RunFolder(tmp_path / "first"), 0)
        assert not launched.has_begun() and status_of(launched) is None
        first = made(tmp_path / "first", "finished")
        assert launched.has_begun() and status_of(launched) == "finished" and launched.folder is not None
        assert launched.folder.root == first.root
        _tell_launch(RunFolder(tmp_path / "second"), 0)
        assert status_of(launched) is None and launched.has_begun()  # the first run is complete
        made(tmp_path / "second")
        assert launched.has_begun() and status_of(launched) is None
    assert SCRIPT_VARIABLE not in os.environ


def test_a_second_start_of_a_run_has_begun_and_its_first_summary_does_not_count(
    config: RunConfig, tmp_path: pathlib.Path
) -> None:
    made(tmp_path / "run", "finished")  # an earlier one, which this replaces
    with LaunchedRun(config) as launched:
        variable = os.environ[SCRIPT_VARIABLE]
        launched.begin()
        _tell_launch(RunFolder(tmp_path / "run"), 0)
        assert SCRIPT_VARIABLE not in os.environ  # as for processes that the script starts
        assert not launched.has_begun() and status_of(launched) is None
        (tmp_path / "run" / "config.yaml").unlink()
        made(tmp_path / "run", "stopped")
        assert launched.has_begun() and status_of(launched) == "stopped"
        launched.begin()
        assert launched.summary is None and launched.folder is not None
        os.environ[SCRIPT_VARIABLE] = variable  # of another process
        _tell_launch(RunFolder(tmp_path / "run"), 0)
        assert launched.has_begun() and status_of(launched) is None


def test_a_script_that_has_told_nothing_may_have_begun_on_another_host(config: RunConfig) -> None:
    with LaunchedRun(config, is_here=False) as launched:
        launched.begin()
        assert launched.has_begun() and launched.summary is None


def test_what_is_told_after_the_end_of_launch_is_written_nowhere(config: RunConfig, tmp_path: pathlib.Path) -> None:
    (tmp_path / "other").write_bytes(b"content" * 4000)
    with LaunchedRun(config) as launched:
        page = Place(**json.loads(os.environ[SCRIPT_VARIABLE]))
        _tell_launch(RunFolder(tmp_path / "first"), 0)
        assert launched.folder is not None
    with (tmp_path / "other").open("r+b") as other:
        if other.fileno() != page.descriptor:  # the number that a file opened after the end of `launch` may well get
            os.dup2(other.fileno(), page.descriptor)
        _tell_launch(RunFolder(tmp_path / "second"), 0)
        if other.fileno() != page.descriptor:
            os.close(page.descriptor)
    assert (tmp_path / "other").read_bytes() == b"content" * 4000
