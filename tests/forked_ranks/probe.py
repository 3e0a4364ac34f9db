"""A forked rank that reports its surroundings, or ends in different ways: `python -m tests.forked_ranks.probe ACTION`,
see `ACTIONS`.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import signal
import sys
from collections.abc import Callable

import numpy


def describe() -> None:
    """Print everything that a program is given."""
    found = {
        "arguments": sys.argv[1:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "files": sorted(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")),
        "input": sys.stdin.read(),
        "name": __name__,
        "has torch": "torch" in sys.modules,
    }
    json.dump(found, sys.stdout)


def fail() -> None:
    """End by an exception, with an exit handler left to run."""
    atexit.register(lambda: os.write(1, b"at the end\n"))
    raise ZeroDivisionError("injected")


def wait() -> None:
    """Print the id of this process, and wait for SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    print(os.getpid(), flush=True)
    while True:
        signal.pause()


ACTIONS: dict[str, Callable[[], object]] = {
    "describe": describe,
    "draw": lambda: print(random.random(), numpy.random.random()),
    "exit": lambda: sys.exit(3),
    "fail": fail,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "wait": wait,
}

if __name__ == "__main__":
    ACTIONS[sys.argv[1]]()
