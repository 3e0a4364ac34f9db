"""A thread that writes files, so that whoever has something to write need not wait for the disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
# Copies of a run's parameters that may wait for the disk, beside one checkpoint.
MAX_UNWRITTEN_VECTORS = 4


class BackgroundWriter:
    """Does what it is given in order, in one thread; a context manager. Used by one other thread."""

    def __init__(self, max_bytes: int) -> None:
        """Starts nothing. `max_bytes`: what may wait to be written; whoever brings more waits for the disk."""
        self._max_bytes = max_bytes
        self._work: list[tuple[Future[Any], int]] = []
        self._failures: list[BaseException] = []

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
        """Have `function(*arguments)` done; `num_bytes` is what it holds of memory until then. Blocks where too much waits.

        Raises nothing of what was written before: whoever hands something over is in the middle of other work.
        """
        while self._work and sum(size for _, size in self._work) + num_bytes > self._max_bytes:
            self._take_first()
        future = self._thread.submit(function, *arguments)
        self._work.append((future, num_bytes))
        return future

    def wait(self) -> None:
        """Block until everything is written. Raises what a write raised."""
        while self._work:
            self._take_first()
        self.raise_failures()

    def raise_failures(self) -> None:
        """Raise the first of what finished writes have raised; it, and those after it, once."""
        while self._work and self._work[0][0].done():
            self._take_first()
        if self._failures:
            failure, self._failures = self._failures[0], []
            raise failure

    def forget_failures(self) -> None:
        """Wait for everything, and let go what could not be written: whoever calls knows that something failed."""
        while self._work:
            self._take_first()
        self._failures.clear()

    def _take_first(self) -> None:
        failure = self._work.pop(0)[0].exception()
        if failure is not None:
            self._failures.append(failure)
