"""A lock held by another process, for tests."""

from __future__ import annotations

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def locked_by_another(path: pathlib.Path) -> Iterator[None]:
    """Hold the lock inside the block, as another process would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
