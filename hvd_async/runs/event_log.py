"""The event log of a run: one JSON object per line, complete enough to recompute the run."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from hvd_async.errors import DataError
from hvd_async.system.json_text import parse_json

_CHUNK_BYTES = 1 << 20
_LOOK_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class LogMark:
    """Position in a log: the number of bytes before it, and their checksum (CRC-32)."""

    num_bytes: int = 0
    checksum: int = 0


class EventLog:
    """Appends events to a file; a context manager.

    Every event has `event` (its kind) and `seconds` (of training, from the start of the run, earlier processes included);
    the other fields depend on the kind: see docs/run-folder.md. Every method raises `DataError` if a file system operation
    fails, or if the file has disappeared.
    """

    def __init__(self, path: pathlib.Path, keep: LogMark = LogMark()) -> None:
        """`keep`: the beginning of an existing log to keep, which must fit (see `fits`)."""
        self._path = path
        self._mark = keep
        self._looked = 0.0
        self._fault = ""

    def __enter__(self) -> EventLog:
        """Open the file and truncate it to the part to keep. Raises `DataError` if the file does not begin with this
        part."""
        if not fits(self._path, self._mark):
            raise DataError(
                f"{self._path}: does not begin with the {self._mark.num_bytes} bytes that the checkpoint expects; restore the"
                " log or start again with --overwrite"
            )
        with self._named_errors():
            self._file = self._path.open("ab")
            self._file.truncate(self._mark.num_bytes)
            self._inode = os.fstat(self._file.fileno()).st_ino
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Flush and close the file. After an exception, errors of closing are not raised."""
        with self._named_errors() if kind is None else contextlib.suppress(OSError):
            self._file.close()

    def write(self, event: str, seconds: float, **fields: Any) -> None:
        """Append one event to the buffer; `flush` and `mark` write the buffer."""
        line = json.dumps({"event": event, "seconds": round(seconds, 6), **fields}).encode() + b"\n"
        with self._named_errors():
            self._file.write(line)
        self._mark = LogMark(self._mark.num_bytes + len(line), zlib.crc32(line, self._mark.checksum))
        if (now := time.monotonic()) - self._looked > _LOOK_EVERY_SECONDS:
            self._looked = now
            self._check_there()

    def flush(self) -> None:
        """Pass the buffer to the operating system, which keeps it if this process dies."""
        with self._named_errors():
            self._file.flush()

    def mark(self) -> LogMark:
        """Pass the buffer to the operating system; return the position that the log has then."""
        self.flush()
        self._check_there()
        return self._mark

    def sync(self) -> None:
        """Wait until everything passed to the operating system is on disk. Another thread may call this."""
        with self._named_errors():
            os.fsync(self._file.fileno())

    def _check_there(self) -> None:
        """Raise `DataError` if the file was deleted or moved: a deleted file still accepts writes, which no one could
        read."""
        try:
            if self._path.stat().st_ino == self._inode:
                return
        except FileNotFoundError:
            pass
        except OSError:
            return  # another file system problem, which writing reports
        self._fault = (
            f"{self._path}: was deleted or moved during the run, expected it to stay; restore the folder of the run"
        )
        raise DataError(self._fault)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Raise errors as `DataError`, and repeat the first one forever: after it the log is incomplete."""
        if self._fault:
            raise DataError(self._fault)
        try:
            yield
        except OSError as error:
            self._fault = f"{self._path}: cannot be written: {error.strerror or error}"
            raise DataError(self._fault) from None


def fits(path: pathlib.Path, mark: LogMark) -> bool:
    """Whether the log `path` begins with the bytes before `mark`, which are read."""
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


def events_with_ends(path: pathlib.Path) -> list[tuple[dict[str, Any], LogMark]]:
    """Return the events of a log, and where each of them ends, up to the first that is not whole. Raises `DataError` if the log
    cannot be read."""
    try:
        with path.open("rb") as file:
            return list(_whole_events(file))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def whole_part(path: pathlib.Path, mark: LogMark) -> LogMark:
    """Return the end of the valid events in the log `path` up to `mark`: before the first invalid line; 0 if it is
    missing."""
    part = LogMark()
    with contextlib.suppress(OSError), path.open("rb") as file:
        for _, end in _whole_events(file):
            if end.num_bytes > mark.num_bytes:
                break
            part = end
    return part


def _whole_events(lines: Iterable[bytes]) -> Iterator[tuple[dict[str, Any], LogMark]]:
    """Yield events and where they end, up to the first line that is none."""
    mark = LogMark()
    for line in lines:
        event = _event(line) if line.endswith(b"\n") else None
        if event is None:
            return
        mark = LogMark(mark.num_bytes + len(line), zlib.crc32(line, mark.checksum))
        yield event, mark


def read_events(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a log in order. An unfinished last line, left by a crash, is skipped.

    Raises `DataError` if the file is missing or any other line is not an event.
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
