"""The event log: written events are read back, a torn end is skipped, damage is named."""

from __future__ import annotations

import math
import os
import pathlib
import zlib

import pytest

from hvd_async.errors import DataError
from hvd_async.runs.event_log import EventLog, LogMark, fits, read_events, whole_part

FIRST = b'{"event": "start", "seconds": 0.5, "version": 0}\n'


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "events.jsonl"


def test_events_are_read_back_in_order(path: pathlib.Path) -> None:
    with EventLog(path) as log:
        log.write("start", 0.5, version=0)
        log.write("note", 1.23456789, text="a\nb – ü", bleu=None, list=[1, 2])
    assert path.read_bytes().startswith(FIRST)
    assert list(read_events(path)) == [
        {"event": "start", "seconds": 0.5, "version": 0},
        {"event": "note", "seconds": 1.234568, "text": "a\nb – ü", "bleu": None, "list": [1, 2]},
    ]


def test_losses_that_are_not_finite_are_read_back(path: pathlib.Path) -> None:
    with EventLog(path) as log:
        log.write("arrival", 0.0, loss=math.nan, bound=-math.inf)
    (event,) = read_events(path)
    assert math.isnan(event["loss"]) and event["bound"] == -math.inf


def test_a_mark_gives_the_size_on_the_disk_and_a_checksum(path: pathlib.Path) -> None:
    with EventLog(path) as log:
        log.write("start", 0.5, version=0)
        assert log.mark() == LogMark(len(FIRST), zlib.crc32(FIRST)) and path.read_bytes() == FIRST


def test_a_mark_fits_only_a_log_that_begins_with_the_marked_bytes(path: pathlib.Path) -> None:
    mark = LogMark(2 * len(FIRST), zlib.crc32(2 * FIRST))
    assert not fits(path, mark) and fits(path, LogMark())
    for content, expected in (
        (2 * FIRST, True),
        (3 * FIRST, True),
        (2 * FIRST + b"torn", True),
        (2 * FIRST[:-1], False),
        (bytes(2 * len(FIRST)), False),  # left by a file system that lost the data, but not the size
        (FIRST + FIRST.replace(b"0", b"1"), False),
    ):
        path.write_bytes(content)
        assert fits(path, mark) == expected
        if not expected:
            with (
                pytest.raises(DataError, match=r"does not begin with the .* bytes that the checkpoint expects"),
                EventLog(path, mark),
            ):
                pass
            assert path.read_bytes() == content


def test_the_intact_part_of_a_log_ends_before_the_first_line_that_is_no_event(path: pathlib.Path) -> None:
    mark, one = LogMark(3 * len(FIRST), zlib.crc32(3 * FIRST)), LogMark(len(FIRST), zlib.crc32(FIRST))
    assert whole_part(path, mark) == LogMark()
    for content, expected in (
        (FIRST + FIRST[:-1], one),
        (FIRST + bytes(2 * len(FIRST)), one),
        (FIRST + b"[]\n" + FIRST, one),
        (5 * FIRST, mark),
    ):
        path.write_bytes(content)
        assert whole_part(path, mark) == expected


@pytest.mark.parametrize("what", ["deleted", "moved", "replaced"])
def test_a_log_that_is_lost_while_it_is_written_is_noticed(path: pathlib.Path, what: str) -> None:
    with pytest.raises(DataError, match=r"events.jsonl: was deleted or moved during the run"), EventLog(path) as log:
        log.write("start", 0.5)
        path.unlink() if what == "deleted" else path.rename(path.with_name("elsewhere"))
        if what == "replaced":
            path.write_bytes(b"")
        log.mark()


def test_a_full_disk_is_reported_in_one_line(path: pathlib.Path) -> None:
    full = pathlib.Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    with pytest.raises(DataError, match=r"events.jsonl: cannot be written: No space left on device$"), EventLog(path) as log:
        log.write("start", 0.5)
        with full.open("ab") as device:
            os.dup2(device.fileno(), log._file.fileno())
        log.mark()


def test_a_new_log_replaces_an_old_one(path: pathlib.Path) -> None:
    path.write_bytes(FIRST * 3)
    with EventLog(path):
        pass
    assert path.read_bytes() == b""


def test_a_continued_log_keeps_the_events_up_to_the_checkpoint(path: pathlib.Path) -> None:
    path.write_bytes(FIRST * 3)
    with EventLog(path, LogMark(2 * len(FIRST), zlib.crc32(2 * FIRST))) as log:
        log.write("end", 2.0)
    assert [event["event"] for event in read_events(path)] == ["start", "start", "end"]


@pytest.mark.parametrize("torn", [b'{"event": "upd', b"{", b'"\xc3'])
def test_a_last_line_that_a_crash_left_unfinished_is_skipped(path: pathlib.Path, torn: bytes) -> None:
    path.write_bytes(FIRST + torn)
    assert len(list(read_events(path))) == 1


@pytest.mark.parametrize("damage", [b"{]\n", b"\n", b"\xff\xfe\xff\n", b"[1]\n", b"7\n"])
def test_any_other_line_that_is_no_event_is_named(path: pathlib.Path, damage: bytes) -> None:
    path.write_bytes(FIRST + damage + FIRST)
    with pytest.raises(DataError, match=r"events.jsonl:2: not an event; the log is damaged"):
        list(read_events(path))


def test_a_missing_log_is_reported(path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file or directory; expected the event log of a run"):
        list(read_events(path))
