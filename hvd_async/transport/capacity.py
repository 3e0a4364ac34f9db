"""A check that the nodes have the memory that a run needs, made before any of it is allocated."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

from hvd_async.errors import SetupError
from hvd_async.system.machine import available_memory
from hvd_async.transport import host_memory
from hvd_async.transport.group import Group

_SHARED_FOLDER = "/dev/shm"


@dataclass(frozen=True)
class Need:
    """Memory for one purpose on one rank. `is_shared`: shared memory, which /dev/shm holds."""

    what: str
    num_bytes: int
    is_shared: bool


@dataclass(frozen=True)
class Room:
    """Free memory of a node in bytes; None if it is unknown or unlimited."""

    memory: int | None
    shared: int | None


def check_capacity(
    group: Group,
    host: str,
    needs: Sequence[Need],
    room: Room | None = None,
    *,
    hint: str = "use fewer ranks on the node, or a larger /dev/shm",
) -> None:
    """Raise `SetupError` on all ranks if the ranks of some node need more memory than it has. Collective over `group`.

    `needs` are those of this rank; `room` is that of its node, looked up by default. `hint` ends the
    message.
    """
    room = free_memory() if room is None else room
    mine = {
        "host": host,
        "needs": [[need.what, need.num_bytes, need.is_shared] for need in needs],
        "memory": room.memory,
        "shared": room.shared,
    }
    reports = [json.loads(text) for text in group.allgather(json.dumps(mine))]
    faults = []
    for name in dict.fromkeys(report["host"] for report in reports):
        of_host = [report for report in reports if report["host"] == name]
        wanted = [Need(*need) for report in of_host for need in report["needs"]]
        shared = [need for need in wanted if need.is_shared]
        for what, free, items in (
            (_SHARED_FOLDER, _smallest(of_host, "shared"), shared),
            ("memory", _smallest(of_host, "memory"), wanted),
        ):
            total = sum(need.num_bytes for need in items)
            if free is not None and total > free:
                faults.append(
                    f"{name}: {what}: got {bytes_text(free)} free, expected {bytes_text(total)} = {_arithmetic(items)}"
                )
    if faults:
        raise SetupError("; ".join([*faults, hint]))


def free_memory() -> Room:
    """Return the free memory of this node (the kernel's estimate, or the rest of the control group's limit) and the room
    in /dev/shm, where MPI's windows would be; blocks need none where this system has memory without a name."""
    shared = None
    if not host_memory.is_available() and os.path.isdir(_SHARED_FOLDER):
        status = os.statvfs(_SHARED_FOLDER)
        shared = status.f_bavail * status.f_frsize
    figures = [figure for figure in (available_memory(), _left_in_control_group()) if figure is not None]
    return Room(min(figures, default=None), shared)


def _left_in_control_group(
    root: pathlib.Path = pathlib.Path("/sys/fs/cgroup"), membership: pathlib.Path = pathlib.Path("/proc/self/cgroup")
) -> int | None:
    """Return what the control group of this process and those above it still allow; None without a limit. Memory that
    holds files counts as free, since the kernel gives it back."""
    try:
        paths = [line.split(":", 2)[2].strip("/") for line in membership.read_text().splitlines() if line.startswith("0:")]
    except OSError:
        paths = []
    folders = {root}
    for path in paths:
        below = root / path
        folders |= {folder for folder in (below, *below.parents) if folder.is_relative_to(root)}
    figures = []
    for folder in folders:
        try:
            limit = (folder / "memory.max").read_text(encoding="ascii").strip()
            used = int((folder / "memory.current").read_text(encoding="ascii"))
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):
            continue
        if limit.isdecimal():
            reclaimable = sum(int(statistics.get(name, 0)) for name in ("inactive_file", "active_file", "slab_reclaimable"))
            figures.append(int(limit) - used + reclaimable)
    return min(figures, default=None)


def _smallest(reports: Sequence[dict[str, int | None]], key: str) -> int | None:
    return min((figure for report in reports if (figure := report[key]) is not None), default=None)


def _arithmetic(needs: Sequence[Need]) -> str:
    counts: dict[tuple[str, int], int] = {}
    for need in needs:
        counts[need.what, need.num_bytes] = counts.get((need.what, need.num_bytes), 0) + 1
    terms = [
        f"{f'{count} x ' if count > 1 else ''}{bytes_text(num_bytes)} ({what})"
        for (what, num_bytes), count in counts.items()
    ]
    return " + ".join(terms)


def bytes_text(num_bytes: int) -> str:
    """Return a size such as `1.5 GiB`."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} bytes"
