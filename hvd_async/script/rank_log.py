"""Numbers that a script logs on a rank, in a file of the rank's own."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import IO

from hvd_async.errors import ConfigError, DataError
from hvd_async.runs.folder import RunFolder
from hvd_async.system.printable import printable
from hvd_async.tasks.user_values import describe_value, number_of

_OWN = ("time", "batch")


class RankLog:
    """A file of JSON lines, continued by a resumed run. Lines wait in memory until the run has its folder."""

    def __init__(self, folder: RunFolder, rank: int) -> None:
        """Open nothing yet."""
        self._path = folder.rank_log(rank)
        self._file: IO[str] | None = None
        self._has_folder = False
        self._waiting: list[str] = []

    def open(self) -> None:
        """Write from now on, since the folder is that of this run. Raises `DataError` if the file cannot be written."""
        self._has_folder = True
        self._write_waiting()

    def write(self, batch: int | None, values: Mapping[str, float]) -> None:
        """Write `values`, each with its name, and the number of the batch. Numbers that are not finite are written as null.

        Raises `ConfigError` for what is no number, `DataError` if the file cannot be written.
        """
        line: dict[str, float | None] = {"time": time.time(), "batch": batch}
        for name, value in values.items():
            if name in _OWN:
                raise ConfigError(f"log: got the name {name!r}, which each line has already, expected another")
            number = number_of(value)
            if number is None:
                raise ConfigError(f"log: {printable(name)}: got {describe_value(value)}, expected a number")
            line[name] = number if math.isfinite(number) else None
        self._waiting.append(json.dumps(line) + "\n")
        if self._has_folder:
            self._write_waiting()

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self._path, "a", buffering=1, encoding="utf-8")
            self._file.writelines(self._waiting)
        except OSError as error:
            raise DataError(f"{self._path}: cannot be written: {error.strerror or error}") from None
        self._waiting.clear()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
