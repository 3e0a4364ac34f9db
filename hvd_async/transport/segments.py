"""Open MPI's files in shared memory, which nobody removes when the launcher of the ranks was killed."""

from __future__ import annotations

import contextlib
import os
import re

_MAPPED = re.compile(r"(/dev/shm/sm_segment\..+?)(?: \(deleted\))?$", re.MULTILINE)


def remove_segments() -> None:
    """Remove the files through which this process talks to the other ranks of its host: those that it maps. They stay mapped.
    For a process that is about to end, after its launcher."""
    with contextlib.suppress(OSError), open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        for path in set(_MAPPED.findall(file.read())):
            with contextlib.suppress(OSError):  # another rank has removed it
                os.unlink(path)
