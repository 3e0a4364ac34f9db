"""Ranks forked from a process that has loaded torch already, which saves each of them a second of processor time.

mpirun starts proxy.py instead of each rank. The proxy hands over what it was given, and a keeper, one for each job, forks the
rank. To MPI and to a test the rank is what mpirun started: it has the same arguments, environment, open files,
host and folder, a process id of its own, and it ends by itself. It differs in this: its parent is the keeper, /proc shows the
keeper's environment, modules were loaded with the environment of the tests, and strings have the same hash in all ranks.

    python -m tests.forked_ranks.keeper     its standard input is a socket; for each path that comes in, a keeper listens there
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
# What such a rank can be. They are loaded for what they load, and are run anew.
PROGRAMS = ("tests.mpi.toy", "tests.mpi.device_toy", "tests.mpi.patterns", "tests.transport.contract", "hvd_async")
# What these import when they need it. None of it starts a thread, MPI, or anything else that a fork would break.
_LATE = (
    *(f"hvd_async.strategies.{name}" for name in ("asynchronous", "ddp", "horovod", "single")),
    *("hvd_async.transport.mpi", "hvd_async.tasks.translation.task", "hvd_async.cli.train"),
)
_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


# --- In the process of the tests --------------------------------------------------------------------------------------


class KeeperStarter:
    """The process that forks keepers."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Start it; its ranks load what they load with `environ`."""
        self._requests, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "tests.forked_ranks.keeper"]
            self._process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL, env=environ, cwd=_ROOT)

    @contextlib.contextmanager
    def keeper(self) -> Iterator[list[str]]:
        """The program of ranks of one job, before a module's name and its arguments; none of them outlives the block."""
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
                ours.recv(1)  # its end: the keeper is gone, and every rank before it

    def close(self) -> None:
        """End it."""
        self._requests.close()
        self._process.wait()


# --- In the process that has torch loaded -----------------------------------------------------------------------------


def main() -> None:
    """Fork a keeper for each name that comes in, until there come no more."""
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
    """Wait for those that have ended, so that the time which they took is counted."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _load() -> None:
    mpi4py.rc.initialize = False  # as `start_mpi` has it
    mpi4py.rc.finalize = True
    for name in (*PROGRAMS, *_LATE):
        importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("horovod.torch")
    for name in (*PROGRAMS, "hvd_async.__main__"):
        if not hasattr(sys.modules[name], "__path__"):
            del sys.modules[name]
    assert threading.active_count() == 1
    gc.freeze()  # or each rank would copy all of it when it looks for garbage


@dataclass(frozen=True)
class _Rank:
    """A rank that runs, its end as something to wait for, and the proxy that is told."""

    pid: int
    end: int
    proxy: socket.socket

    def kill(self) -> None:
        """Kill it; it is not waited for yet, so that the number is its own."""
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Wait until the rank is gone, and tell its proxy, if that is still there."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.end)
        with self.proxy, contextlib.suppress(OSError):
            self.proxy.sendall(_number(os.waitstatus_to_exitcode(status)))


def _keep(path: str, tests: socket.socket) -> None:
    """Fork a rank for each proxy that calls, and kill one whose proxy is gone; kill all when `tests` want no more."""
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
    """Fork the rank that `proxy` stands for, unless that was killed before it had asked. `others` are not for the rank."""
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
        sys.exit()  # through all that is above, as a program ends: with what is registered for its end, MPI's too
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(OSError):  # killed meanwhile
        proxy.sendall(_number(pid))
    return [_Rank(pid, os.pidfd_open(pid), proxy)]


def _become(request: Mapping[str, Any], descriptors: Sequence[int], parent: int) -> None:
    """Give this process, a child of `parent`, what its proxy was given."""
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
    """Let `files` have `numbers`, and be all that is open; standard streams are made as Python makes them when it starts."""
    above = max(*numbers, *files) + 1
    for file, number in zip([fcntl.fcntl(file, fcntl.F_DUPFD, above) for file in files], numbers, strict=True):
        os.dup2(file, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in numbers:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(int(name))
    sys.stdin = sys.__stdin__ = open(0, closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)


def _number(value: int) -> bytes:
    return value.to_bytes(NUMBER_BYTES, "little", signed=True)


if __name__ == "__main__":
    main()
