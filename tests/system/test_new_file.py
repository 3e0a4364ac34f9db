"""A new file gets its name when it is whole; what cannot be replaced is written as it is."""

from __future__ import annotations

import os
import pathlib
import threading

import pytest

from hvd_async.errors import DataError
from hvd_async.system.files import new_file, write_file


def test_a_file_gets_its_name_when_it_is_whole(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "below" / "out"
    with new_file(path) as file:
        file.write(b"a")
        assert not path.exists()
        file.write(b"b")
    assert path.read_bytes() == b"ab" and os.listdir(path.parent) == ["out"]


def test_a_failure_leaves_the_old_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(DataError, match="someone else's"), new_file(path) as file:
        file.write(b"new")
        raise DataError("someone else's")
    with pytest.raises(DataError, match=r"out: cannot be written: No space left on device$"), new_file(path):
        raise OSError(28, "No space left on device")
    with pytest.raises(BrokenPipeError), new_file(path):
        raise BrokenPipeError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["out"]


def test_a_device_and_a_pipe_are_written_as_they_are(tmp_path: pathlib.Path) -> None:
    """To replace /dev/null by a file would break the machine."""
    link, pipe = tmp_path / "null", tmp_path / "pipe"
    link.symlink_to("/dev/null")
    write_file(link, b"gone")
    assert link.is_symlink() and link.is_char_device() and pathlib.Path("/dev/null").is_char_device()
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_file(pipe, b"through")
    reader.join()
    assert read == [b"through"] and pipe.is_fifo()


def test_a_folder_in_the_way_is_reported(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r": cannot be written: Is a directory$"):
        write_file(tmp_path, b"x")
