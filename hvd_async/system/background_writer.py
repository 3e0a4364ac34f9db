"""A thread that writes files, so that its caller need not wait for the disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
# Copies of a run's parameters that may wait for the disk, in addition to one checkpoint.
MAX_UNWRITTEN_VECTORS = 2


class BackgroundWriter:
    """Runs functions in order, in one thread; a context manager. To be used by one other thread."""

    def __init__(self, max_bytes: int) -> None:
        """Set the limit; the thread starts on entry. `max_bytes`: memory that may wait to be written; a caller with more
        waits for the disk."""
        self._max_bytes = max_bytes
        self._work: list[tuple[Future[Any], int]] = []
        self._failures: list[BaseException] = []

    def __enter__(self) -> BackgroundWriter:
        """Start the thread."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hvd-async-writer")
        self._thread.submit(int).result()  # starts it: at the end of a script it can no longer be started
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Finish the writes. Raises what a write raised, unless there is an exception already."""
        self._thread.shutdown(wait=True)
        if kind is None:
            self.wait()

    def submit(self, function: Callable[..., T], *arguments: object, num_bytes: int = 0) -> Future[T]:
        """Queue `function(*arguments)`; it holds `num_bytes` of memory until it is done. Blocks if too much is waiting.

        Does not raise errors of earlier writes, since the caller is in the middle of other work.
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
        """Raise the first error of the finished writes, once; later ones are dropped with it."""
        while self._work and self._work[0][0].done():
            self._take_first()
        if self._failures:
            failure, self._failures = self._failures[0], []
            raise failure

    def forget_failures(self) -> None:
        """Wait for all writes, and drop their errors: the caller knows that something failed."""
        while self._work:
            self._take_first()
        self._failures.clear()

    def _take_first(self) -> None:
        failure = self._work.pop(0)[0].exception()
        if failure is not None:
            self._failures.append(failure)
