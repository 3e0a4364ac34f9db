"""The proxy of a rank that is forked elsewhere: mpirun starts this program instead of a Python that would load torch.

    python -I -S tests/forked_ranks/proxy.py SOCKET MODULE ARGUMENT...

It passes everything that a new program is given (arguments, environment, folder, open files, namespaces) to the keeper
that listens at SOCKET, which forks the rank (keeper.py). It forwards signals to the rank, and ends with the status of
the rank. When it is killed, the keeper kills the rank.
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
    """Return the descriptors that were open when this process began, including a pipe of MPICH's mpirun."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself
            os.fstat(int(name))
            found.append(int(name))
    return sorted(found)


def _forward(rank: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(rank, number)


def _receive(keeper: socket.socket) -> int:
    """Return the next number from the keeper; exit if the keeper is gone, since the rank is gone with it."""
    data = b""
    while len(data) < NUMBER_BYTES:
        if not (more := keeper.recv(NUMBER_BYTES - len(data))):
            os._exit(1)
        data += more
    return int.from_bytes(data, "little", signed=True)


if __name__ == "__main__":
    main()
