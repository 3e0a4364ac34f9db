"""How `launch` goes on with a run that has failed."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from hvd_async.cli.launched_run import LaunchedRun
from hvd_async.cli.starts import start_until_done
from hvd_async.config import RunConfig, parse_config
from hvd_async.launcher import Begin, LaunchOutcome
from hvd_async.runs.folder import RunFolder

FAILED = LaunchOutcome(1, "launch: failed", is_failure=True)
DONE = LaunchOutcome(0, "launch: done")


@pytest.fixture
def config(tmp_path: pathlib.Path) -> RunConfig:
    """The configuration of a run in a folder that has an earlier one."""
    tree = {"output": str(tmp_path / "run"), "task": {"data": {"folder": "text"}}, "training": {"epochs": 1}}
    found = parse_config(tree, source="made")
    folder = RunFolder(found.output)
    folder.root.mkdir()
    folder.config.write_text("the earlier one")
    (folder.checkpoints / "v00000016").mkdir(parents=True)
    return found


def begins(config: RunConfig, first: Begin, *outcomes: tuple[bool, LaunchOutcome], restarts: int = 5) -> list[Begin]:
    """Return how the starts were to begin, each of which makes the folder its own, or not, and has an outcome."""
    left: Iterator[tuple[bool, LaunchOutcome]] = iter(outcomes)
    found: list[Begin] = []

    def start(begin: Begin) -> LaunchOutcome:
        found.append(begin)
        makes, outcome = next(left)
        if makes:
            new = RunFolder(config.output).root / "new"
            new.write_text("its own")
            new.rename(RunFolder(config.output).config)
        return outcome

    assert start_until_done(LaunchedRun(config), start, first, None, restarts) == outcomes[len(found) - 1][1].status
    return found


def test_a_run_that_had_not_begun_does_not_go_on_with_an_earlier_one(config: RunConfig) -> None:
    assert begins(config, "overwrite", (False, FAILED), (False, FAILED), (True, FAILED), (False, DONE)) == [
        "overwrite",
        "overwrite",
        "overwrite",
        "auto-resume",
    ]


def test_a_resumed_run_goes_on_whenever_it_fails(config: RunConfig) -> None:
    assert begins(config, "resume", (False, FAILED), (False, DONE)) == ["resume", "auto-resume"]


def test_it_is_started_no_more_often_than_asked(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert begins(config, "overwrite", (False, FAILED), (False, FAILED), restarts=1) == ["overwrite"] * 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "launch: failed; restart 1 of 1, as at first, since the run had not begun"
    assert (
        lines[1].startswith("launch: failed; 2 starts, 0:00:0") and "resume" not in lines[1]
    )  # the saved state is of the earlier


def test_a_failure_tells_how_the_run_goes_on(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    begins(config, "overwrite", (True, FAILED), restarts=0)
    assert capsys.readouterr().out == "launch: failed; saved: version 16, resume with --resume\n"
