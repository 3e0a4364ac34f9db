"""The event log of a run: one JSON object a line, complete enough to recompute the run."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from hvd_async.errors import DataError
from hvd_async.json_text import parse_json


class EventLog:
    """Appends events to a file; a context manager.

    Every event has `event` (its kind) and `seconds` (of training, from the start of the run, earlier processes included);
    the other fields depend on the kind: see docs/run-folder.md.
    """

    def __init__(self, path: pathlib.Path, keep_bytes: int = 0) -> None:
        """`keep_bytes`: how much of an existing log is kept: what a checkpoint had seen of it."""
        self._path = path
        self._keep_bytes = keep_bytes

    def __enter__(self) -> EventLog:
        """Open the file and cut it to `keep_bytes`. Raises `DataError` if it is shorter."""
        self._file = self._path.open("ab")
        size = os.fstat(self._file.fileno()).st_size
        if size < self._keep_bytes:
            self._file.close()
            raise DataError(
                f"{self._path}: got {size} bytes, expected the {self._keep_bytes} that the checkpoint knows; bring the log back"
                " or start again with --overwrite"
            )
        self._file.truncate(self._keep_bytes)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Write out what is buffered and close the file."""
        self._file.close()

    def write(self, event: str, seconds: float, **fields: Any) -> None:
        """Append one event. Buffered: see `flush`."""
        line = json.dumps({"event": event, "seconds": round(seconds, 6), **fields})
        self._file.write(line.encode() + b"\n")

    def flush(self) -> int:
        """Hand everything to the operating system; the size of the log in bytes."""
        self._file.flush()
        return os.fstat(self._file.fileno()).st_size


def read_events(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The events of a log in order. A last line that a crash left unfinished is passed over.

    Raises `DataError` if the file is missing or another line is not an event.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; expected the event log of a run") from None
    for number, line in enumerate(lines, start=1):
        try:
            event = parse_json(line)
        except ValueError:  # not JSON, or not even text
            event = None
        if not isinstance(event, dict):
            if not line.endswith(b"\n"):
                return
            raise DataError(f"{path}:{number}: not an event; the log is damaged")
        yield event
