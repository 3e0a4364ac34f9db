"""Locks on what several processes, on several hosts, may want to compute. A lock ends with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import pathlib
import time
from collections.abc import Callable, Iterator

from hvd_async.errors import DataError

# Time for a process that was told to end, or whose parent was killed, and that saves everything before it ends.
_PATIENCE_SECONDS = 60.0
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_IS_HELD = (
    errno.EWOULDBLOCK,
    errno.EAGAIN,
    errno.EACCES,
)  # the last is raised where flock is emulated by the locks of fcntl


class BusyError(DataError):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(
    path: pathlib.Path, name: str, who: str, say: Callable[[str], None], is_over: Callable[[], bool] = lambda: False
) -> Iterator[int]:
    """Hold the lock in the file `path` inside the block; yields its descriptor. The lock lasts while any process keeps that
    open.

    `name` (what is locked) and `who` (who else may hold it) are for messages. Waits a while, but no longer than until
    `is_over`, then raises `BusyError`; raises `DataError` if the file system fails. If the file system has no locks, says
    so and continues without. The file stays: a process that has it open would otherwise wait for a lock that no other
    process finds.
    """
    deadline, is_said = time.monotonic() + _PATIENCE_SECONDS, False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    say(
                        f"{name}: locking is not supported here ({error.strerror}); make sure no other process"
                        " uses this folder"
                    )
                    break
                if error.errno not in _IS_HELD:
                    hint = "try again, or use a folder on another file system"
                    raise DataError(f"{path}: cannot be locked: {error.strerror}; {hint}") from None
                if time.monotonic() > deadline or is_over():
                    raise BusyError(f"{name}: {who} is at work there; wait for it or end it") from None
            if not is_said:
                say(f"{name}: waiting for {who} to end")
                is_said = True
            time.sleep(0.2)  # flock has no time limit of its own
        yield file.fileno()
