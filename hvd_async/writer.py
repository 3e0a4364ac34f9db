"""A thread that writes files, so that whoever has something to write need not wait for the disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
# Copies of a run's parameters that may wait for the disk, beside one checkpoint.
MAX_UNWRITTEN_VECTORS = 4


class BackgroundWriter:
    """Does what it is given in order, in one thread; a context manager. Used by one other thread."""

    def __init__(self, max_bytes: int) -> None:
        """Starts nothing. `max_bytes`: what may wait to be written; whoever brings more waits for the disk."""
        self._max_bytes = max_bytes
        self._work: list[tuple[Future[object], int]] = []

    def __enter__(self) -> BackgroundWriter:
        """Start the thread."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hvd-async-writer")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Finish what is being written. Raises what a write raised, unless there is an exception already."""
        self._thread.shutdown(wait=True)
        if kind is None:
            self.wait()

    def submit(self, function: Callable[..., T], *arguments: object, num_bytes: int = 0) -> Future[T]:
        """Have `function(*arguments)` done; `num_bytes` is what it holds of memory until then. Blocks where too much waits."""
        self.raise_failures()
        while self._work and sum(size for _, size in self._work) + num_bytes > self._max_bytes:
            self._work.pop(0)[0].result()
        future = self._thread.submit(function, *arguments)
        self._work.append((future, num_bytes))  # type: ignore[arg-type]  # only whether it is done is asked of it
        return future

    def wait(self) -> None:
        """Block until everything is written. Raises what a write raised."""
        while self._work:
            self._work.pop(0)[0].result()

    def raise_failures(self) -> None:
        """Raise what a finished write raised, each once."""
        while self._work and self._work[0][0].done():
            self._work.pop(0)[0].result()

    def forget_failures(self) -> None:
        """Wait for everything, and let go what could not be written: whoever calls knows that something failed."""
        while self._work:
            self._work.pop(0)[0].exception()
