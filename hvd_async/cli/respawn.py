"""Workers that take the places of those that died: `hvd-async launch --respawn`."""

from __future__ import annotations

import threading
from types import TracebackType

from hvd_async.errors import HvdAsyncError
from hvd_async.runs.folder import RunFolder
from hvd_async.system.process_state import state_of
from hvd_async.system.processes import Children
from hvd_async.system.shared_memory import Place
from hvd_async.system.standard_streams import tell

_LOOK_SECONDS = 0.25
# How long a new worker waits for the place: its gradients that are pending must be in an update first.
_WAIT_SECONDS = 600


class Respawner:
    """Starts a process on this host, which joins the run, for each worker that dies; a context manager.

    Threads watch the run and the processes. At the end of the block all of them are asked to leave.
    """

    def __init__(self, folder: RunFolder, limit: int, arguments: tuple[str, ...] = ()) -> None:
        """At most `limit` processes are started in the run of `folder`. `arguments`: more for `hvd-async join`."""
        self._folder = folder
        self._limit = limit
        self._arguments = arguments
        self._num_started = 0
        self._num_failed = 0  # of those started
        self._num_seen = 0  # workers lost since the ranks were started last
        self._num_before = 0
        self._has_told = False
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._children = Children()
        self._watcher = threading.Thread(target=self._watch, name="hvd-async-respawn", daemon=True)
        self._runners: list[threading.Thread] = []

    def __enter__(self) -> Respawner:
        """Begin to watch."""
        self._children.__enter__()
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """End all processes that were started."""
        self._is_over.set()
        self._watcher.join()
        self._children.__exit__(kind, value, trace)
        for runner in self._runners:
            runner.join()

    def _watch(self) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            num_lost = self._num_lost()
            self._num_before += self._num_seen * (num_lost < self._num_seen)  # the ranks were started again
            self._num_seen = num_lost
            with self._lock:
                wanted = self._num_before + num_lost + self._num_failed
            while self._num_started < min(wanted, self._limit):
                self._num_started += 1
                runner = threading.Thread(target=self._run, name="hvd-async-joiner", daemon=True)
                runner.start()
                self._runners.append(runner)

    def _num_lost(self) -> int:
        """Return how many workers of the launcher have died; 0 if no run is under way here."""
        try:
            place = self._place()
            if place.is_here:
                from hvd_async.store.serve.joining import read_num_lost

                return read_num_lost(place)
        except HvdAsyncError:
            return 0
        if not self._has_told:
            self._has_told = True
            tell("launch: --respawn: the store is on another host, so that no worker is replaced\n")
        return 0

    def _place(self) -> Place:
        """Return where the store of the run under way is. Raises `HvdAsyncError` if there is none."""
        found = self._folder.read_invitation()  # first, so that what follows is not loaded while ranks start
        from hvd_async.strategies.invitation import Invitation

        return Invitation.from_json(found).places[0]

    def _has_store(self) -> bool:
        """Whether a run is under way whose store lives, as far as can be seen from here."""
        try:
            place = self._place()
        except HvdAsyncError:
            return False
        return not place.is_here or bool(state_of(place.process))

    def _run(self) -> None:
        arguments = ("join", str(self._folder.root), "--wait", str(_WAIT_SECONDS), *self._arguments)
        done = self._children.run(arguments, in_sight=True)
        # One that ends with the store takes no other's place: when the run goes on, all ranks are started again.
        if done is not None and done.returncode != 0 and not self._is_over.is_set() and self._has_store():
            with self._lock:
                self._num_failed += 1
