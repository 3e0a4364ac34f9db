"""Where the curves of a run go."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, Protocol


class CurveSink(Protocol):
    """One place for curves. Methods may raise anything; the caller then drops the sink and says so."""

    title: str
    place: str
    """Where the curves lie, for messages."""

    def open(self) -> None:
        """Begin, or continue the curves of an earlier process. Does not wait for a network."""

    def add(self, points: Mapping[str, float], version: int) -> None:
        """Add a point to each of the named curves."""

    def add_text(self, name: str, text: str, version: int) -> None:
        """Keep a text in Markdown beside the curves."""

    def finish(self, *, is_failed: bool) -> None:
        """Begin to write what is left. `is_failed`: the run ended with an error. Only `wait` is called after it."""

    def wait(self, until: float) -> None:
        """Wait until everything is written, at most until `until`, a time of `time.monotonic`."""


class TensorBoard:
    """Files in the run's folder."""

    title = "TensorBoard scalars"

    def __init__(self, folder: pathlib.Path, purge_from: int | None) -> None:
        """Open no file. `purge_from`: points of an earlier process from this version on are dropped."""
        self.place = str(folder)
        self._folder = folder
        self._purge_from = purge_from
        self._writer: Any = None

    def open(self) -> None:
        """Open the file."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_from)

    def add(self, points: Mapping[str, float], version: int) -> None:
        """Add to the buffer of the file."""
        for name, value in points.items():
            self._writer.add_scalar(name, value, version)

    def add_text(self, name: str, text: str, version: int) -> None:
        """Add to the buffer of the file."""
        self._writer.add_text(name, text, version)

    def finish(self, *, is_failed: bool) -> None:
        """Write the buffer."""
        self._writer.close()

    def wait(self, until: float) -> None:
        """Do nothing: everything is written."""
