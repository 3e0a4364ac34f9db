"""The progress of a suite, as a user sees it."""

from __future__ import annotations

import io
import json
import pathlib
from typing import Any

import pytest
import rich.console

from hvd_async.comparison.suite import BudgetConfig
from hvd_async.comparison.suite_progress import Board, Follower

BUDGET = BudgetConfig(weight=200)


def update(number: int, **fields: Any) -> bytes:
    event = {"event": "update", "seconds": 2.0 * number, "version": number, "weight": 50, "loss": 5.0 - number, **fields}
    return json.dumps(event).encode() + b"\n"


def seen(follower: Follower) -> tuple[int, float, float, float | None]:
    follower.look()
    return follower.version, follower.weight, follower.seconds, follower.loss


@pytest.fixture
def log(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "events.jsonl"


def test_a_log_is_followed_as_it_grows(log: pathlib.Path) -> None:
    follower = Follower(log)
    assert seen(follower) == (0, 0, 0.0, None)  # there is no log yet
    log.write_bytes(b'{"event": "start", "seconds": 0.0}\n' + update(1))
    assert seen(follower) == (1, 50, 2.0, 4.0)
    assert seen(follower) == (1, 50, 2.0, 4.0)
    with log.open("ab") as file:
        file.write(update(2) + b'{"event": "arrival", "seconds": 9.0, "weight": 25}\n' + update(3))
    assert seen(follower) == (3, 150, 6.0, 2.0)


def test_half_a_line_is_read_once_it_is_complete(log: pathlib.Path) -> None:
    follower, line = Follower(log), update(1)
    log.write_bytes(line[:20])
    assert seen(follower) == (0, 0, 0.0, None)
    log.write_bytes(line[:-1])
    assert seen(follower) == (0, 0, 0.0, None)
    log.write_bytes(line)
    assert seen(follower) == (1, 50, 2.0, 4.0)


def test_a_log_that_became_shorter_is_read_again(log: pathlib.Path) -> None:
    follower = Follower(log)
    log.write_bytes(update(1) + update(2) + update(3)[:9])
    assert seen(follower) == (2, 100, 4.0, 3.0)
    log.write_bytes(update(1, loss=1.0))
    assert seen(follower) == (1, 50, 2.0, 1.0)
    log.write_bytes(b"")
    assert seen(follower) == (0, 0, 0.0, None)


@pytest.mark.parametrize(
    "line",
    [
        *(b"\n", b"{\n", b"\xff\xfe\n", b"[]\n", b"3\n", b'"update"\n', b"null\n", b"{}\n"),
        *(b'{"event": "update"}\n', update(9, weight=None), update(9, version="x"), update(9, loss=[])),
        update(9, version=float("inf")),
    ],
)
def test_a_line_that_is_no_event_is_skipped(log: pathlib.Path, line: bytes) -> None:
    follower = Follower(log)
    log.write_bytes(update(1) + line + update(2))
    assert seen(follower) == (2, 100, 4.0, 3.0)


@pytest.mark.parametrize(
    ("budget", "share"),
    [({"weight": 200}, 0.5), ({"updates": 8}, 0.25), ({"seconds": 40.0}, 0.1), ({"updates": 1}, 1.0)],
)
def test_the_share_done_is_a_fraction_of_the_budget(log: pathlib.Path, budget: dict[str, Any], share: float) -> None:
    follower = Follower(log)
    assert follower.share(BudgetConfig(**budget)) == 0.0
    log.write_bytes(update(1) + update(2))
    follower.look()
    assert follower.share(BudgetConfig(**budget)) == share


def test_without_a_terminal_plain_lines_are_printed(log: pathlib.Path) -> None:
    stream = io.StringIO()
    board = Board(is_live=False, stream=stream)
    board.expect(2)
    with board.showing():
        with board.running("[a]-s1", log, BUDGET, is_resumed=False):
            board.say("[a]-s1: something [bold]")
        board.expect(1)
        with board.running("b-s1", log, BUDGET, is_resumed=True):
            pass
    assert stream.getvalue() == "[a]-s1: starts, 1 of 2\n[a]-s1: something [bold]\nb-s1: resumes, 2 of 3\n"


def drawn(board: Board) -> list[str]:
    stream = io.StringIO()
    rich.console.Console(file=stream, width=120).print(board.table())
    return [" ".join(line.split()) for line in stream.getvalue().splitlines()]


def test_the_table_has_a_row_for_each_run(log: pathlib.Path) -> None:
    log.write_bytes(b'{"event": "start", "weight_unit": "images"}\n' + update(1) + update(2))
    board = Board(is_live=True, stream=io.StringIO())
    board.expect(3)
    with board.running("n_1-s1", log, BUDGET, is_resumed=False), board.running("b-s1", log / "no", BUDGET, is_resumed=False):
        title, head, first, second = drawn(board)
    assert title == "0 of 3 runs done, 0:00"
    assert head == "run done version loss speed time"
    assert first.startswith("n_1-s1 ") and first.endswith(" 50% 2 3.000 25 images/s 0:00")
    assert second.startswith("b-s1 ") and second.endswith(" 0% 0 - - 0:00")
    assert drawn(board)[0] == "2 of 3 runs done, 0:00" and len(drawn(board)) == 2


def test_a_run_that_fails_counts_as_done(log: pathlib.Path) -> None:
    board = Board(is_live=True, stream=io.StringIO())
    board.expect(1)
    with pytest.raises(ZeroDivisionError), board.running("a-s1", log, BUDGET, is_resumed=False):
        raise ZeroDivisionError
    assert drawn(board)[0].startswith("1 of 1 runs done")


def test_on_a_terminal_lines_are_printed_above_the_table(log: pathlib.Path) -> None:
    stream = io.StringIO()
    board = Board(is_live=True, stream=stream)
    with board.showing(), board.running("a-s1", log, BUDGET, is_resumed=False):
        board.say("a-s1: [said]")
    assert "a-s1: [said]\n" in stream.getvalue()
    assert "starts" not in stream.getvalue()
