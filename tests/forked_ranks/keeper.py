"""Ranks forked from a process that has already loaded torch, which saves each of them a second of processor time.

mpirun starts proxy.py instead of each rank. The proxy passes its arguments, environment and open files to a keeper, of
which each job has one, and the keeper forks the rank. To MPI and to a test, the rank looks like a process started by
mpirun: it has the same arguments, environment, open files, host and folder, a process id of its own, and it ends by
itself. The differences: its parent is the keeper, /proc shows the keeper's environment, modules were loaded with the
environment of the tests, and strings have the same hash in all ranks.

    python -m tests.forked_ranks.keeper     standard input is a socket; a keeper listens at each path that arrives there
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mpi4py
import numpy

from tests.forked_ranks.proxy import NAMESPACES, NUMBER_BYTES

_FOLDER = os.path.dirname(os.path.abspath(__file__))
_ROOT = os.path.dirname(os.path.dirname(_FOLDER))
_PROXY = os.path.join(_FOLDER, "proxy.py")
# Modules that such a rank may run. They are loaded for the sake of their imports, and run anew in each rank.
PROGRAMS = (
    "tests.mpi.toy",
    "tests.mpi.device_toy",
    "tests.mpi.patterns",
    "tests.transport.contract",
    "tests.script.blobs_script",
    "tests.script.loop_script",
    "hvd_async",
)
# Modules that these import lazily. None of them starts a thread, MPI, or anything else that would break in a fork.
_LATE = (
    *(f"hvd_async.strategies.{name}" for name in ("asynchronous", "ddp", "horovod", "single")),
    *("hvd_async.transport.mpi", "hvd_async.tasks.translation.task", "hvd_async.cli.train"),
)
_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


# --- In the process of the tests --------------------------------------------------------------------------------------


class KeeperStarter:
    """A process that forks keepers."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Start the process; modules are loaded with `environ`."""
        self._requests, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "tests.forked_ranks.keeper"]
            self._process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL, env=environ, cwd=_ROOT)

    @contextlib.contextmanager
    def keeper(self) -> Iterator[list[str]]:
        """Yield the command of the ranks of one job, to be followed by a module's name and its arguments; no rank
        outlives the block.
        """
        with tempfile.TemporaryDirectory(prefix="hvdt") as folder:
            path = os.path.join(folder, "keeper")
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    socket.send_fds(self._requests, [path.encode()], [theirs.fileno()])
                if not ours.recv(1):
                    raise RuntimeError(f"{' '.join(self._process.args)}: no keeper")
                yield [sys.executable, "-I", "-S", _PROXY, path]
                ours.shutdown(socket.SHUT_WR)
                ours.recv(1)  # end of file: the keeper is gone, and so is every rank

    def close(self) -> None:
        """End the process."""
        self._requests.close()
        self._process.wait()


# --- In the process that has loaded torch -----------------------------------------------------------------------------


def main() -> None:
    """Fork a keeper for each path that arrives, until the socket is closed."""
    _load()
    with socket.socket(fileno=os.dup(0)) as requests:
        while True:
            data, descriptors, _, _ = socket.recv_fds(requests, 1024, 1)
            _forget_keepers()
            if not data:
                return
            with socket.socket(fileno=descriptors[0]) as tests:
                if os.fork() == 0:
                    requests.close()
                    _keep(data.decode(), tests)
                    os._exit(0)


def _forget_keepers() -> None:
    """Wait for keepers that have ended, so that their processor time is counted."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _load() -> None:
    mpi4py.rc.initialize = False  # as `start_mpi` sets it
    mpi4py.rc.finalize = False
    for name in (*PROGRAMS, *_LATE):
        importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("horovod.torch")
    for name in (*PROGRAMS, "hvd_async.__main__"):
        if not hasattr(sys.modules[name], "__path__"):
            del sys.modules[name]
    assert threading.active_count() == 1
    gc.freeze()  # otherwise each rank would copy all objects when it collects garbage


@dataclass(frozen=True)
class _Rank:
    """A running rank, a descriptor that becomes ready when the rank ends, and the proxy to notify."""

    pid: int
    end: int
    proxy: socket.socket

    def kill(self) -> None:
        """Kill the rank. It has not been reaped, so its process id is still its own."""
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Wait until the rank is gone, and send its status to its proxy, if that still runs."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.end)
        with self.proxy, contextlib.suppress(OSError):
            self.proxy.sendall(_number(os.waitstatus_to_exitcode(status)))


def _keep(path: str, tests: socket.socket) -> None:
    """Fork a rank for each proxy that connects, and kill a rank whose proxy is gone; kill all when the tests close
    their socket.
    """
    ranks: list[_Rank] = []
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen(64)
        tests.sendall(b"!")
        while True:
            by_end, by_proxy = {rank.end: rank for rank in ranks}, {rank.proxy: rank for rank in ranks}
            ready, _, _ = select.select([door, tests, *by_end, *by_proxy], [], [])
            for one in ready:
                if one is tests:
                    for rank in ranks:
                        rank.kill()
                        rank.close()
                    return
                if one is door:
                    ranks += _admit(door.accept()[0], [door, tests, *by_proxy])
                elif one in by_end:
                    ranks.remove(by_end[one])
                    by_end[one].close()
                elif by_proxy[one] in ranks:
                    by_proxy[one].kill()


def _admit(proxy: socket.socket, others: Sequence[socket.socket]) -> list[_Rank]:
    """Fork the rank of `proxy`, unless the proxy was killed before its request was complete. `others` are closed in the
    rank.
    """
    data, descriptors, _, _ = socket.recv_fds(proxy, NUMBER_BYTES, 253)
    num_bytes = int.from_bytes(data, "little")
    with proxy.makefile("rb") as stream:
        text = stream.read(num_bytes)
    if not descriptors or len(text) < num_bytes:
        proxy.close()
        return []
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        request = json.loads(text)
        for each in (proxy, *others):
            os.close(each.detach())
        _become(request, descriptors, parent)
        runpy.run_module(request["argv"][0], run_name="__main__", alter_sys=True)
        sys.exit()  # unwinds the stack as at the end of a program, and runs exit handlers, including MPI's
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(OSError):  # the proxy was killed meanwhile
        proxy.sendall(_number(pid))
    return [_Rank(pid, os.pidfd_open(pid), proxy)]


def _become(request: Mapping[str, Any], descriptors: Sequence[int], parent: int) -> None:
    """Give this process, a child of `parent`, everything its proxy was given."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    os.setsid()
    spaces, files = descriptors[: len(NAMESPACES)], descriptors[len(NAMESPACES) :]
    for name, space in zip(NAMESPACES, spaces, strict=True):
        if not os.path.sameopenfile(space, own := os.open(f"/proc/self/ns/{name}", os.O_RDONLY)) and libc.setns(space, 0):
            raise OSError(ctypes.get_errno(), f"setns: {name}")
        os.close(own)
    os.chdir(request["folder"])
    os.sched_setaffinity(0, request["cores"])
    _move_files(files, request["descriptors"])
    os.environ.clear()
    os.environ.update(request["environ"])
    sys.argv = ["", *request["argv"][1:]]
    sys.path[0] = request["folder"]
    random.seed()
    numpy.random.seed()


def _move_files(files: Sequence[int], numbers: Sequence[int]) -> None:
    """Give `files` the descriptors `numbers`, and close all others; open standard streams as Python does at its start."""
    above = max(*numbers, *files) + 1
    for file, number in zip([fcntl.fcntl(file, fcntl.F_DUPFD, above) for file in files], numbers, strict=True):
        os.dup2(file, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in numbers:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself
                os.close(int(name))
    sys.stdin = sys.__stdin__ = open(0, closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def _number(value: int) -> bytes:
    return value.to_bytes(NUMBER_BYTES, "little", signed=True)


if __name__ == "__main__":
    main()
