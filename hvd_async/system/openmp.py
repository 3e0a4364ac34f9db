"""How long the OpenMP threads of an operation spin while they wait for each other, and what that costs beside a busy process.

PyTorch splits an operation among OpenMP threads, which meet at its end. GNU's OpenMP lets the early threads spin for
milliseconds, on cores that the late ones may be waiting for: beside one busy process a Transformer's step then takes 12
to 20 times as long. docs/performance.md has the figures.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass

VARIABLE = "GOMP_SPINCOUNT"
# About 70 microseconds: longer than most waits on a quiet machine, far shorter than a time slice of the scheduler.
SPINS = "1000"
_CHOICES = (VARIABLE, "OMP_WAIT_POLICY")
_late: list[bool] = []

# About 50 microseconds with one thread, like operations of a small Transformer.
_ELEMENTS = 1 << 18
_SECONDS = 0.6
# In a session of its own, like another user's process: the scheduler divides cores among sessions first. Ends by itself.
_BUSY = "import time\nend = time.monotonic() + 10\nwhile time.monotonic() < end: pass"


def bound_spinning(environ: MutableMapping[str, str]) -> None:
    """Make threads that wait for each other sleep after a short spin, unless `environ` says otherwise.

    Call this before torch is loaded: its OpenMP reads the environment once. See `is_too_late`.
    """
    if not any(name in environ for name in _CHOICES):
        environ[VARIABLE] = SPINS
        if "torch" in sys.modules:
            _late.append(True)


def is_too_late() -> bool:
    """Whether torch was loaded before `bound_spinning` was called, and so has not heard of it."""
    return bool(_late)


def is_default(name: str, value: str) -> bool:
    """Whether a variable has the value that `bound_spinning` gives it in every process of ours, on any host."""
    return (name, value) == (VARIABLE, SPINS)


@dataclass(frozen=True)
class Contention:
    """Operations per second: with one thread, with all threads, and with all beside one more busy process."""

    threads: int
    one_thread: float
    alone: float
    beside: float

    @property
    def cliff(self) -> float:
        """Speed of one thread / speed of all threads in their worst case."""
        return self.one_thread / min(self.alone, self.beside)


def measure_contention() -> Contention:
    """Compute with one thread, with all, and with all beside a busy process. Takes about two seconds."""
    import torch  # imported late: the environment must be set first

    values = torch.zeros(_ELEMENTS)
    threads = torch.get_num_threads()

    def rate(num_threads: int) -> float:
        torch.set_num_threads(num_threads)
        values.add_(1.0)  # starts the threads
        began, count = time.perf_counter(), 0
        while (took := time.perf_counter() - began) < _SECONDS or not count:
            values.add_(1.0)
            count += 1
        return count / took

    try:
        one_thread, alone = rate(1), rate(threads)
        with _busy_process():
            return Contention(threads, one_thread, alone, rate(threads))
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", _BUSY], start_new_session=True, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()
