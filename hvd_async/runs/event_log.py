"""The event log of a run: one JSON object a line, complete enough to recompute the run."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from hvd_async.errors import DataError
from hvd_async.system.json_text import parse_json

_CHUNK_BYTES = 1 << 20
_LOOK_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class LogMark:
    """How far a log was written: its bytes, and a checksum (CRC-32) over them."""

    num_bytes: int = 0
    checksum: int = 0


class EventLog:
    """Appends events to a file; a context manager.

    Every event has `event` (its kind) and `seconds` (of training, from the start of the run, earlier processes included);
    the other fields depend on the kind: see docs/run-folder.md. Every method raises `DataError`, in a line, where the file
    system refuses, or where the file has gone.
    """

    def __init__(self, path: pathlib.Path, keep: LogMark = LogMark()) -> None:
        """`keep`: how much of an existing log is kept, which is a part that `fits`."""
        self._path = path
        self._mark = keep
        self._looked = 0.0
        self._fault = ""

    def __enter__(self) -> EventLog:
        """Open the file and cut it to what is kept. Raises `DataError` if it does not begin with that."""
        if not fits(self._path, self._mark):
            raise DataError(
                f"{self._path}: does not begin with the {self._mark.num_bytes} bytes that the checkpoint knows; bring the log"
                " back or start again with --overwrite"
            )
        with self._named_errors():
            self._file = self._path.open("ab")
            self._file.truncate(self._mark.num_bytes)
            self._inode = os.fstat(self._file.fileno()).st_ino
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Write out what is buffered and close the file. After an exception, a second one is not raised for it."""
        with self._named_errors() if kind is None else contextlib.suppress(OSError):
            self._file.close()

    def write(self, event: str, seconds: float, **fields: Any) -> None:
        """Append one event. Buffered: see `mark`."""
        line = json.dumps({"event": event, "seconds": round(seconds, 6), **fields}).encode() + b"\n"
        with self._named_errors():
            self._file.write(line)
        self._mark = LogMark(self._mark.num_bytes + len(line), zlib.crc32(line, self._mark.checksum))
        if (now := time.monotonic()) - self._looked > _LOOK_EVERY_SECONDS:
            self._looked = now
            self._check_there()

    def mark(self) -> LogMark:
        """Hand everything to the operating system; how far the log is written then."""
        with self._named_errors():
            self._file.flush()
        self._check_there()
        return self._mark

    def sync(self) -> None:
        """Wait until what was handed to the operating system is on the disk. Another thread may call it."""
        with self._named_errors():
            os.fsync(self._file.fileno())

    def _check_there(self) -> None:
        """A log that was deleted takes what is written, and nobody ever reads it."""
        try:
            if self._path.stat().st_ino == self._inode:
                return
        except FileNotFoundError:
            pass
        except OSError:
            return  # the file system has other troubles, of which writing tells
        self._fault = (
            f"{self._path}: was deleted or moved while the run went on, expected it to stay; put the folder of the run back"
        )
        raise DataError(self._fault)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """A log that could not be written once has lost something: whatever comes later is refused as well."""
        if self._fault:
            raise DataError(self._fault)
        try:
            yield
        except OSError as error:
            self._fault = f"{self._path}: cannot be written: {error.strerror or error}"
            raise DataError(self._fault) from None


def fits(path: pathlib.Path, mark: LogMark) -> bool:
    """Whether the log `path` begins with what was written when it was marked. Reads that part of it."""
    if mark.num_bytes == 0:
        return True
    left, checksum = mark.num_bytes, 0
    try:
        with path.open("rb") as file:
            while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
                left, checksum = left - len(chunk), zlib.crc32(chunk, checksum)
    except OSError:
        return False
    return left == 0 and checksum == mark.checksum


def whole_part(path: pathlib.Path, mark: LogMark) -> LogMark:
    """How much of the log `path`, up to `mark`, is events: all lines before the first that is none. Nothing if it is missing."""
    part = LogMark()
    with contextlib.suppress(OSError), path.open("rb") as file:
        for line in file:
            is_over = part.num_bytes + len(line) > mark.num_bytes
            if is_over or not line.endswith(b"\n") or _event(line) is None:
                break
            part = LogMark(part.num_bytes + len(line), zlib.crc32(line, part.checksum))
    return part


def read_events(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The events of a log in order. A last line that a crash left unfinished is passed over.

    Raises `DataError` if the file is missing or another line is not an event.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; expected the event log of a run") from None
    for number, line in enumerate(lines, start=1):
        event = _event(line)
        if event is None:
            if not line.endswith(b"\n"):
                return
            raise DataError(f"{path}:{number}: not an event; the log is damaged")
        yield event


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = parse_json(line)
    except ValueError:  # not JSON, or not even text
        return None
    return event if isinstance(event, dict) else None
