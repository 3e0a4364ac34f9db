"""Files and folders that appear under their names complete or not at all, and are on disk when they do."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hvd_async.errors import DataError

# Hidden names of files being written, and of files moved aside for them: `.NAME.<letters>.tmp` and `.NAME.<letters>.old`.
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-z]+\.(?P<kind>tmp|old)")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2(2)


def temporary_beside(path: Path, kind: str = "tmp") -> Path:
    """Return a fresh hidden name beside `path`, for a file that will become it (`tmp`) or was it (`old`)."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")


def write_file(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write `content` under a temporary name beside `path`, then rename it to `path`, replacing an existing file. `mode`: its
    permissions, less those that the process masks.

    Creates missing folders. Content and name are on disk on return. Raises `DataError` if the file system refuses.
    """
    with new_file(path, mode) as file:
        file.write(content)


@contextlib.contextmanager
def new_file(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yield an empty file under a temporary name beside `path`; it becomes `path` when the block ends without an exception.

    A device or a pipe is written as it is, since it cannot be replaced. Otherwise as `write_file`.
    """
    temporary = temporary_beside(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with open(path, "wb") as stream:
                yield stream
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except BrokenPipeError:
        raise  # of a stream that the block writes, too
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool) -> Iterator[Path]:
    """Yield an empty folder beside `path` to be filled; it becomes `path` when the block ends without an exception.

    Its contents are on disk before it gets its name. If `path` exists then, it is replaced if `replace`; otherwise it
    stays and the new folder is discarded, which is right for content that any process would have made alike. Old and new
    exchange names in one step if the file system can do so. Elsewhere the old one is moved aside first, and a crash in
    between leaves both under hidden names, from which `remove_leftovers` restores it. Raises `DataError` if the file
    system refuses.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise DataError(f"{path}: cannot be made: {error.strerror or error}") from None
    try:
        yield temporary
        for parent, _, files in os.walk(temporary):
            for name in files:
                sync(Path(parent, name))
            sync(Path(parent))
        _rename(temporary, path, replace=replace)
        sync(path.parent)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until the file or folder `path` is on disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_usual_mode(path: Path) -> None:
    """Give the file `path` the mode of a file that this process creates, for files that a library made private."""
    path.chmod(0o666 & ~_umask())


def remove_leftovers(folder: Path) -> None:
    """Remove what dead writers left in `folder`, and restore the name of anything that was moved aside and not replaced.

    The caller must keep all other writers out of `folder`. Raises `DataError` if the file system refuses.
    """
    try:
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            found = _LEFTOVER.fullmatch(entry.name)
            if found is None:
                continue
            whole = folder / found["name"]
            if found["kind"] == "old" and not whole.exists():
                entry.rename(whole)
            else:
                remove(entry)
    except OSError as error:
        raise DataError(f"{folder}: leftovers of an earlier process cannot be removed: {error.strerror or error}") from None


def remove(path: Path) -> None:
    """Remove the file or folder `path`, if it exists. For a link to a folder, remove the contents and keep the link,
    since someone wants the files to be elsewhere. Raises `OSError` if anything remains."""
    if path.is_symlink() and path.is_dir():
        for entry in list(path.iterdir()):
            remove(entry)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Return two numbers that change when the file is replaced or written; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _rename(temporary: Path, path: Path, *, replace: bool) -> None:
    while True:
        try:
            temporary.rename(path)
            return
        except OSError:
            if not path.exists():
                raise
        if not replace or _exchange(temporary, path):
            return
        # A fresh name for the old one, since another process may be replacing it at the same time.
        aside = temporary_beside(path, "old")
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


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step, if both exist and the system and the file system can do so; return whether it was
    done."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    done: int = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


def _umask() -> int:
    """Return the process's umask, without setting it, which another thread would notice; if it cannot be read, the usual
    one."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(next(line for line in status.splitlines() if line.startswith("Umask:")).split()[1], 8)
    return 0o022
