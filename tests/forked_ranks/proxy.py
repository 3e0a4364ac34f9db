"""The proxy of a rank that is forked elsewhere: mpirun starts this program instead of a Python that would load torch.

    python -I -S tests/forked_ranks/proxy.py SOCKET MODULE ARGUMENT...

It hands what every new program is given (arguments, environment, folder, open files, namespaces) to the keeper that listens at
SOCKET, which forks the rank (keeper.py). It passes signals on to the rank and ends as the rank does. When it is killed, the
keeper kills the rank.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
NAMESPACES = ("net", "uts", "mnt")
NUMBER_BYTES = 8


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    descriptors = _open_descriptors()
    with socket.socket(socket.AF_UNIX) as keeper:
        keeper.connect(sys.argv[1])
        request = {
            "argv": sys.argv[2:],
            "environ": dict(os.environ),
            "folder": os.getcwd(),
            "descriptors": descriptors,
            "cores": sorted(os.sched_getaffinity(0)),
        }
        text = json.dumps(request).encode()
        spaces = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in NAMESPACES]
        socket.send_fds(keeper, [len(text).to_bytes(NUMBER_BYTES, "little")], [*spaces, *descriptors])
        keeper.sendall(text)
        rank = _receive(keeper)
        for number in FORWARDED:
            signal.signal(number, lambda number, _: _forward(rank, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        status = _receive(keeper)
    if status < 0:
        if -status in FORWARDED:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _open_descriptors() -> list[int]:
    """Everything that was open when this process began; MPICH's mpirun has a pipe of its own among it."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            os.fstat(int(name))
            found.append(int(name))
    return sorted(found)


def _forward(rank: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(rank, number)


def _receive(keeper: socket.socket) -> int:
    """The next number of the keeper; where the keeper is gone, so is the rank."""
    data = b""
    while len(data) < NUMBER_BYTES:
        if not (more := keeper.recv(NUMBER_BYTES - len(data))):
            os._exit(1)
        data += more
    return int.from_bytes(data, "little", signed=True)


if __name__ == "__main__":
    main()
