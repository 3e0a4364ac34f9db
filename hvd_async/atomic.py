"""Files and folders that appear under their name complete, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hvd_async.errors import DataError


def write_file(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name beside `path`, then rename it to `path`, replacing what was there.

    Makes the folders on the way. Raises `DataError` where the file system refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool) -> Iterator[Path]:
    """Yield an empty folder beside `path` to be filled; it becomes `path` when the block ends without an exception.

    Where `path` exists at that moment it is replaced if `replace`; else it stays and the new folder is thrown away, which is
    right for content that any process would have made alike. A folder cannot be renamed over a filled one, so a
    replacement moves the old one aside first: a crash in between leaves both, whole, under hidden names beside `path`.
    Raises `DataError` where the file system refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise DataError(f"{path}: cannot be made: {error.strerror or error}") from None
    try:
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        yield temporary
        _rename(temporary, path, replace=replace)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, path: Path, *, replace: bool) -> None:
    while True:
        try:
            temporary.rename(path)
            return
        except OSError:
            if not path.exists():
                raise
        if not replace:
            return
        # A fresh name for the old one: another process may be replacing it at the same time.
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
        try:
            temporary.rename(path)
            return
        except OSError:
            if not path.exists():
                raise
        finally:
            if path.exists():
                shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    """The process's umask. There is no call that reads it without setting it."""
    current = os.umask(0o022)
    os.umask(current)
    return current
