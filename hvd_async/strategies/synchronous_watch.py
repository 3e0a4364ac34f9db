"""Watch of a synchronous rank, which waits for all others in every step, over ranks that never come."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator

from hvd_async.errors import HvdAsyncError, PeerError
from hvd_async.store.wire.stop import StopNotice
from hvd_async.strategies.protocol import Job
from hvd_async.system.failure_message import message_of, print_message
from hvd_async.transport.group import Group

_LOOK_SECONDS = 0.1
_RANK = re.compile(r"hvd-async: rank \d+: ")
# Rank 0 has the observer: the other ranks give it this time to save before they end the job.
_OTHERS_SECONDS = 30.0


class Watch:
    """Ends this process, with a message, when it has waited too long for other ranks; a context manager.

    Libraries wait inside their own code, possibly forever, and no exception reaches them there. So a thread checks three
    things: whether the allreduce of a step has lasted longer than `worker_timeout_seconds`; whether this rank was asked to
    stop and has not ended a step for `stop_timeout_seconds`; and, on rank 0, whether another rank has reported a failure.
    Rank 0 first saves the replica, which no other thread changes meanwhile.
    """

    def __init__(self, job: Job, group: Group) -> None:
        """Start nothing."""
        self._job = job
        self._group = group
        self._rank = group.rank
        self._waiting_since: float | None = None
        self._asked_since: float | None = None
        self.is_whole = True
        """Whether the replica is consistent, all of one version. False after an error within `updating`."""
        self.is_busy = False
        """Whether this rank is busy with work that may take long: an evaluation, or saving."""
        self._told: set[str] = set()
        self._changing = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hvd-async-watch", daemon=True)

    def __enter__(self) -> Watch:
        """Start the thread if there are other ranks."""
        if len(self._job.plans) > 1:
            with contextlib.suppress(
                RuntimeError
            ):  # at the end of a script no thread can be started: then nothing is watched
                self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread and wait for it."""
        self.end()

    def end(self) -> None:
        """Stop the thread and wait for it. If it is about to end the job, it does so meanwhile."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()

    def tell(self, text: str) -> None:
        """Print `text`, why a rank fails, unless another rank said the same: several may make one mistake."""
        reason = _RANK.sub("", text)
        if reason not in self._told:
            self._told.add(reason)
            print_message(text)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark the block as one that waits for other ranks."""
        self._waiting_since = time.monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        """Mark the block as one that changes the replica, which cannot be saved meanwhile."""
        with self._changing:
            self.is_whole = False
            try:
                yield
            except HvdAsyncError:  # from the observer, which is called after a version was made
                self.is_whole = True
                raise
            self.is_whole = True

    def _run(self) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            if self._rank == 0 and (reported := self._group.reported_failure()) is not None:
                failure: tuple[int, str] | None = reported
                while failure is not None:
                    self.tell(failure[1])
                    failure = self._group.reported_failure()
                self._save(None)
                self._group.abort(reported[0])
            fault, asked = self._fault()
            if fault is not None:
                self.tell(message_of(self._rank, fault))
                self._save(asked)
                os._exit(fault.exit_status)  # the main thread is inside the library and cannot be reached

    def _fault(self) -> tuple[PeerError | None, StopNotice | None]:
        """Return the timeout that was exceeded, if any, and the stop request, if it was not answered."""
        now, asked, waiting_since = time.monotonic(), self._job.stop_requested(), self._waiting_since
        if asked is not None and (self._asked_since is None or self.is_busy):
            self._asked_since = now
        strategy, later = self._job.strategy, 0.0 if self._rank == 0 else _OTHERS_SECONDS
        limit = strategy.stop_timeout_seconds
        if self._asked_since is not None and now - self._asked_since > limit + later:
            return PeerError(f"asked to stop, and the step was not over after {limit:.0f} s{_NAMES['stop']}"), asked
        name = "hang" if strategy.is_async else "worker"  # after training, ranks of `async` evaluate together
        limit = strategy.hang_timeout_seconds if strategy.is_async else strategy.patience_seconds
        if waiting_since is not None and now - waiting_since > limit + later:
            return PeerError(f"waited for other ranks for {limit:.0f} s{_NAMES[name]}"), None
        return None, None

    def _save(self, asked: StopNotice | None) -> None:
        """Save the replica, and prevent all further changes by the main thread."""
        self._changing.acquire()
        if self._job.observer is not None:
            self._job.observer.rescue(asked)


_NAMES = {
    name: f" (strategy.{name}_timeout_seconds); a rank is slow, dead, stopped or starved of a core; the last version is saved"
    for name in ("stop", "worker", "hang")
}
