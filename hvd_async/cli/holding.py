"""What `hvd-async launch` does when the process of the store dies: it keeps the store's memory, and saves what is in it."""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType
from typing import Any

from hvd_async.errors import HvdAsyncError
from hvd_async.runs.folder import RunFolder
from hvd_async.system.process_state import state_of
from hvd_async.system.shared_memory import Hold, Place

# A look asks for the file's time alone.
_LOOK_SECONDS = 0.02
# How long the store's process may take to end when the launcher of the ranks has ended.
_ENDING_SECONDS = 5.0


class StoreKeeper:
    """Keeps the memory of the store of a run, as soon as there is one, if it is on this host; a context manager."""

    def __init__(self, folder: RunFolder) -> None:
        """`folder` is that of the run, whose store may be started again and again."""
        self._folder = folder
        self._holds: list[Hold] = []
        self._invitation: dict[str, Any] = {}
        self._saved = -1  # version that was saved last
        self._is_over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="hvd-async-keeper", daemon=True)

    def __enter__(self) -> StoreKeeper:
        """Begin to look for the store."""
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Keep the memory no more."""
        self._is_over.set()
        self._watcher.join()
        self._let_go()

    def save(self) -> tuple[str, bool]:
        """Save the state of the store, if its process has died and has not saved it. Called when all ranks have ended. Return a
        line on what was saved, or could not be, and whether the run may go on; no line if there is nothing to say."""
        from hvd_async.store.wire.layout import Layout
        from hvd_async.strategies.invitation import Invitation
        from hvd_async.training.salvage import salvage
        from hvd_async.transport.host_memory import HostMemory

        if not self._holds or not self._have_ended():
            return "", False
        try:
            invitation = Invitation.from_json(self._invitation)
            memories = [
                HostMemory[Layout](layout, hold.map()) for layout, hold in zip(invitation.layouts, self._holds, strict=True)
            ]
            with self._folder.locked(lambda line: None):
                groups = [slice(*each) for each in invitation.groups]
                saved = salvage(self._folder, memories, groups, is_measured=invitation.is_measured)
        except HvdAsyncError as error:
            return f"launch: the store's memory could not be saved: {error}", False
        finally:
            self._let_go()
        if saved is None:
            return "", False
        before = "none" if saved.saved_version is None else f"version {saved.saved_version}"
        line = f"launch: the store's process has died; version {saved.version} is saved from its memory (saved before: {before})"
        has_advanced, self._saved = saved.version > self._saved, saved.version
        return line, has_advanced

    def _watch(self) -> None:
        """Hold the memory of each store that the folder names; quick, and without the libraries that a rank needs."""
        seen = 0
        while not self._is_over.wait(_LOOK_SECONDS):
            with contextlib.suppress(OSError, HvdAsyncError, KeyError, TypeError):  # there is none, or not yet
                if (written := self._folder.invitation.stat().st_mtime_ns) == seen:
                    continue
                found, seen = self._folder.read_invitation(), written
                places = [Place(**place) for place in found["places"]]
                if all(place.is_here for place in places):
                    holds = [Hold(place) for place in places]
                    self._let_go()
                    self._invitation, self._holds = found, holds

    def _let_go(self) -> None:
        for hold in self._holds:
            hold.close()
        self._holds = []

    def _have_ended(self) -> bool:
        """Whether the processes of all shards have ended, for which this waits a little."""
        deadline = time.monotonic() + _ENDING_SECONDS
        while any(state_of(hold.place.process) for hold in self._holds):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True
