"""The standard input of a rank among several."""

from __future__ import annotations

import io
from typing import Any

from hvd_async.errors import ConfigError


class NoInput(io.TextIOBase):
    """In place of the standard input of a job of several ranks: no one is there to type, and the others would wait."""

    def __init__(self, rank: int) -> None:
        """`rank` is for the message."""
        self._rank = rank

    def readable(self) -> bool:
        """It is asked to read."""
        return True

    def readline(self, size: int | None = -1) -> Any:
        """Raise `ConfigError`."""
        raise ConfigError(
            f"input: rank {self._rank} of a job asks for text, expected none: no one is there to type; pass it as an argument of"
            " the script"
        )

    read = readline
