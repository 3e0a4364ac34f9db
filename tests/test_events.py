"""The event log: what is written is read, a torn end is passed over, damage is named."""

from __future__ import annotations

import math
import pathlib

import pytest

from hvd_async.errors import DataError
from hvd_async.events import EventLog, read_events

FIRST = b'{"event": "start", "seconds": 0.5, "version": 0}\n'


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "events.jsonl"


def test_events_come_back_in_order(path: pathlib.Path) -> None:
    with EventLog(path) as log:
        log.write("start", 0.5, version=0)
        log.write("note", 1.23456789, text="a\nb – ü", bleu=None, list=[1, 2])
    assert path.read_bytes().startswith(FIRST)
    assert list(read_events(path)) == [
        {"event": "start", "seconds": 0.5, "version": 0},
        {"event": "note", "seconds": 1.234568, "text": "a\nb – ü", "bleu": None, "list": [1, 2]},
    ]


def test_losses_that_are_not_finite_come_back(path: pathlib.Path) -> None:
    with EventLog(path) as log:
        log.write("arrival", 0.0, loss=math.nan, bound=-math.inf)
    (event,) = read_events(path)
    assert math.isnan(event["loss"]) and event["bound"] == -math.inf


def test_flush_gives_the_size_on_the_disk(path: pathlib.Path) -> None:
    with EventLog(path) as log:
        log.write("start", 0.5, version=0)
        assert log.flush() == len(FIRST) == path.stat().st_size


def test_a_new_log_replaces_an_old_one(path: pathlib.Path) -> None:
    path.write_bytes(FIRST * 3)
    with EventLog(path):
        pass
    assert path.read_bytes() == b""


def test_a_continued_log_keeps_what_the_checkpoint_had_seen(path: pathlib.Path) -> None:
    path.write_bytes(FIRST * 3)
    with EventLog(path, keep_bytes=2 * len(FIRST)) as log:
        log.write("end", 2.0)
    assert [event["event"] for event in read_events(path)] == ["start", "start", "end"]


@pytest.mark.parametrize("torn", [b'{"event": "upd', b"{", b'"\xc3'])
def test_a_last_line_that_a_crash_left_unfinished_is_passed_over(path: pathlib.Path, torn: bytes) -> None:
    path.write_bytes(FIRST + torn)
    assert len(list(read_events(path))) == 1


@pytest.mark.parametrize("damage", [b"{]\n", b"\n", b"\xff\xfe\xff\n", b"[1]\n", b"7\n"])
def test_another_line_that_is_no_event_is_named(path: pathlib.Path, damage: bytes) -> None:
    path.write_bytes(FIRST + damage + FIRST)
    with pytest.raises(DataError, match=r"events.jsonl:2: not an event; the log is damaged"):
        list(read_events(path))


def test_a_log_that_is_not_there(path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file or directory; expected the event log of a run"):
        list(read_events(path))
