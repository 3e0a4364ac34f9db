"""The state of other processes of this host, as the kernel tells it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import socket


def state_of(process: int) -> str:
    """Return the state of the process with this id, as proc(5) has it: `R`, `S`, `T` if it is stopped, ...; empty if it is
    gone, or a zombie; `?` if it cannot be seen."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        return "?"  # another user's process
    with contextlib.suppress(OSError, IndexError):
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0].strip("ZX")
    return "?"


def parent_of(process: int) -> int | None:
    """Return the id of the parent of a process; None where the kernel does not tell."""
    try:
        text = pathlib.Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
        return int(text.rpartition(")")[2].split()[1]) or None
    except (OSError, ValueError, IndexError):
        return None


def children_of(process: int) -> frozenset[int] | None:
    """Return the ids of the living children of a process; None where the kernel does not tell."""
    children: set[int] = set()
    try:
        for task in pathlib.Path(f"/proc/{process}/task").iterdir():
            children |= {int(child) for child in (task / "children").read_text(encoding="ascii").split()}
    except (OSError, ValueError):
        return None
    return frozenset(child for child in children if state_of(child))


def variables_of(process: int) -> dict[str, str] | None:
    """Return the variables with which a process was started; empty if they cannot be read, None if the process has overwritten
    them, as those do that give themselves a title."""
    try:
        words = pathlib.Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    found = dict(word.split("=", 1) for word in words if "=" in word)
    return found if "PATH" in found else None


def scope_of_ids() -> int:
    """Return a number for the host and namespace in which process ids mean what they mean here: containers have their own. It is
    positive and below 2^62; 0 where the kernel does not tell."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
    text = f"{socket.gethostname()} {boot} {namespace}"
    return 1 + int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % (2**62 - 1)
