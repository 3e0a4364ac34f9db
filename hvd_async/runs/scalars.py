"""Curves over versions, for TensorBoard: nice to have, and no reason for a run to end."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from types import TracebackType
from typing import Any


class Scalars:
    """Writes numbers over versions into a folder; a context manager. Where that cannot be done it is told once, and given up."""

    def __init__(self, folder: pathlib.Path | None, say: Callable[[str], None]) -> None:
        """Opens nothing yet. `folder`: None where nothing is to be written. `say` is told what goes wrong."""
        self._folder = folder
        self._say = say
        self._purge_from: int | None = None
        self._writer: Any = None

    def forget_from(self, version: int) -> None:
        """What an earlier process wrote of `version` and later ones is made again: curves are not to run back and forth. Called
        before entering."""
        self._purge_from = version

    def __enter__(self) -> Scalars:
        """Open the file."""
        if self._folder is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._do(lambda: setattr(self, "_writer", SummaryWriter(str(self._folder), purge_step=self._purge_from)))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Write out what is buffered."""
        if self._writer is not None:
            self._do(self._writer.close)

    def add(self, name: str, value: float, version: int) -> None:
        """Add a point to the curve `name`. Returns at once."""
        if self._writer is not None:
            self._do(lambda: self._writer.add_scalar(name, value, version))

    def _do(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self._writer = None
            self._say(f"{self._folder}: cannot be written: {error.strerror or error}; goes on without TensorBoard's scalars")
