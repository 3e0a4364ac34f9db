"""The ground on which a case runs: a /dev/shm of its own and a small disk, in a mount namespace, if this user may have one."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator

DISK = "disk"
_DISK_BYTES = 3 << 20


class Ground:
    """Where the processes of a case run. `folder` is the case's folder; its subfolder `DISK` is a small disk, if `is_own`."""

    def __init__(self, folder: pathlib.Path, keeper: int | None) -> None:
        """`keeper`: a process in the namespace; None: the processes share this one's."""
        self.folder = folder
        self._keeper = keeper

    @property
    def is_own(self) -> bool:
        """Whether the ground has a /dev/shm and a disk of its own."""
        return self._keeper is not None

    @property
    def enter(self) -> tuple[str, ...]:
        """The beginning of a command that is to run here."""
        return () if self._keeper is None else ("nsenter", f"--mount=/proc/{self._keeper}/ns/mnt")

    def path(self, path: pathlib.Path) -> pathlib.Path:
        """Return where this process finds what is `path` on the ground."""
        return path if self._keeper is None else pathlib.Path(f"/proc/{self._keeper}/root{path}")

    def left_in_shared_memory(self) -> list[str]:
        """Return the names of files in /dev/shm, if it is this ground's own."""
        return sorted(os.listdir(self.path(pathlib.Path("/dev/shm")))) if self.is_own else []

    @contextlib.contextmanager
    def filled(self) -> Iterator[None]:
        """Leave no free byte on the small disk inside the block; a context manager."""
        ballast = self.path(self.folder / DISK / "ballast")
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass
        try:
            yield
        finally:
            ballast.unlink()


@contextlib.contextmanager
def ground(folder: pathlib.Path) -> Iterator[Ground]:
    """Make the ground of a case in `folder`; a context manager."""
    (folder / DISK).mkdir()
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("nsenter") is None:
        yield Ground(folder, None)
        return
    mounts = f'mount -t tmpfs none /dev/shm && mount -t tmpfs -o size={_DISK_BYTES} none "$1" && echo made && exec cat'
    # It ends with its standard input, hence with this process.
    keeper = subprocess.Popen(
        ("unshare", "--mount", "sh", "-c", mounts, "_", str(folder / DISK)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert keeper.stdin is not None and keeper.stdout is not None
    with keeper:
        is_made = keeper.stdout.readline() == b"made\n"
        try:
            yield Ground(folder, keeper.pid if is_made else None)
        finally:
            keeper.stdin.close()
