"""`hvd-async launch` keeps the memory of the store, and saves what is in it when the store's process has died."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from types import TracebackType
from typing import Any

from hvd_async.errors import DataError, HvdAsyncError
from hvd_async.runs.folder import RunFolder
from hvd_async.store.wire.layout import Served, Word
from hvd_async.system.launch_page import KEEPER_VARIABLE, LaunchPage
from hvd_async.system.process_state import state_of
from hvd_async.system.shared_memory import Hold, Place
from hvd_async.system.standard_streams import tell
from hvd_async.transport.block import WORD_BYTES

# A look asks for the time of a file alone.
_LOOK_SECONDS = 0.02
# How long the store's processes may take to end when the launcher of the ranks has ended. One that was stopped (SIGSTOP) and
# goes on finds out by itself.
_ENDING_SECONDS = 60.0
_RETRY_SECONDS = 1.0


class StoreKeeper:
    """Keeps the memory of the store of a run, as soon as there is one, if it is on this host; a context manager.

    Inside the block the environment has the `KEEPER_VARIABLE` of `launch_page` for the ranks that are started.
    """

    def __init__(self, patience_seconds: float = 600.0) -> None:
        """`patience_seconds`: how long `save` tries again where the run's folder cannot be written, since the memory is the only
        copy."""
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._holds: list[Hold] = []
        self._invitation: dict[str, Any] = {}
        self._seen = 0
        self._saved = -1  # version that was saved last
        self._is_over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="hvd-async-keeper", daemon=True)
        self._page: LaunchPage | None = None

    def __enter__(self) -> StoreKeeper:
        """Begin to look for the store, where the system has memory without a name."""
        with contextlib.suppress(AttributeError, OSError):
            self._page = LaunchPage()
            os.environ[KEEPER_VARIABLE] = self._page.variable
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Keep the memory no more."""
        self._is_over.set()
        self._watcher.join()
        self._let_go()
        if self._page is not None:
            os.environ.pop(KEEPER_VARIABLE, None)
            self._page.close()

    def is_state_unsaved(self) -> bool:
        """Wait until the store's processes have ended or saved their state, a minute or as long as they are saving; return
        whether all have ended without that. Called when the launcher of the ranks has ended. If one lives on, says so and gives
        its memory up."""
        with self._lock:
            if not self._holds:
                return False
            folder, began = self._folder(), time.time()
            deadline = time.monotonic() + _ENDING_SECONDS
            while True:
                living = [hold.place.process for hold in self._holds if state_of(hold.place.process)]
                if self._is_saved():  # asked after the processes: they may save, and end, in between
                    return False
                if not living:
                    return True
                if time.monotonic() > deadline and not (
                    folder is not None and folder.is_being_saved(began - _ENDING_SECONDS)
                ):
                    tell(
                        f"launch: the store's memory is not saved: process {living[0]}, which has a part of it, still lives; end"
                        " it before the run is resumed\n"
                    )
                    self._let_go()
                    return False
                time.sleep(0.05)  # they are no children of this process

    def save(self) -> tuple[str, bool]:
        """Save the state of the store, if its process has died and has not saved it. Called when all ranks have ended. Return a
        line on what was saved, or could not be, and whether the run may go on; no line if there is nothing to say."""
        if not self.is_state_unsaved():
            return "", False
        deadline, has_told = time.monotonic() + self._patience_seconds, False
        with self._lock:
            try:
                while True:
                    try:
                        return self._save()
                    except Exception as error:  # such as no memory, or a folder that somebody has changed
                        text = str(error) if isinstance(error, HvdAsyncError) else f"{type(error).__name__}: {error}"
                        line = f"launch: the store's memory could not be saved: {' '.join(text.split())}"
                        if self._can_be_written() or time.monotonic() > deadline:
                            return line, False
                        if not has_told:
                            limit = f"tries again for {self._patience_seconds:.0f} s"
                            tell(f"{line}; {limit}: make room, or let the folder be written\n")
                            has_told = True
                        time.sleep(_RETRY_SECONDS)  # no file system tells when it can be written again
            finally:
                self._let_go()

    def _can_be_written(self) -> bool:
        """Whether the run's folder is there, can be written, and has room for a checkpoint."""
        folder = self._folder()
        assert folder is not None
        try:
            if folder.root.is_dir():
                with tempfile.TemporaryFile(dir=folder.root):
                    pass
            free = shutil.disk_usage(folder.root).free
        except OSError:
            return False
        return free > sum(hold.place.num_bytes for hold in self._holds)

    def _save(self) -> tuple[str, bool]:
        from hvd_async.store.wire.layout import Layout
        from hvd_async.strategies.invitation import Invitation
        from hvd_async.training.salvage import salvage
        from hvd_async.transport.host_memory import HostMemory
        from hvd_async.vectors.vector_map import VectorMap

        folder, invitation = self._folder(), Invitation.from_json(self._invitation)
        assert folder is not None  # there is memory, so that a rank has named it
        if not folder.config.exists():
            raise DataError(f"{folder.root}: is gone, or not the folder of the run any more")
        memories = [
            HostMemory[Layout](layout, hold.map()) for layout, hold in zip(invitation.layouts, self._holds, strict=True)
        ]
        vector_map = VectorMap(tuple(slice(*each) for each in invitation.groups))  # no matrices: muon cannot be recovered
        with folder.locked(lambda line: None):
            with contextlib.suppress(HvdAsyncError):  # there is none: the process has withdrawn its own
                if folder.read_invitation()["places"] != self._invitation["places"]:
                    return "launch: the store's memory is not saved: another process has gone on with the run", False
            saved = salvage(folder, memories, vector_map, is_measured=invitation.is_measured)
            folder.withdraw_invitation()
        if saved is None:
            return "", False
        before = "none" if saved.saved_version is None else f"version {saved.saved_version}"
        line = f"launch: the store's process has died; version {saved.version} is saved from its memory (saved before: {before})"
        has_advanced, self._saved = saved.version > self._saved, saved.version
        return line if has_advanced else f"{line}; it has not advanced since it was started again", has_advanced

    def _folder(self) -> RunFolder | None:
        path = "" if self._page is None else self._page.read()
        return RunFolder(path) if path else None

    def _watch(self) -> None:
        """Hold the memory of each store that the folder names; quick, and without the libraries that a rank needs."""
        while not self._is_over.wait(_LOOK_SECONDS):
            with contextlib.suppress(OSError, HvdAsyncError, KeyError, TypeError), self._lock:  # there is none, or not yet
                self._look()

    def _look(self) -> None:
        if (folder := self._folder()) is None:
            return
        if (written := folder.invitation.stat().st_mtime_ns) == self._seen:
            return
        found = folder.read_invitation()
        places = [Place(**place) for place in found["places"]]
        if all(place.is_here for place in places):
            holds: list[Hold] = []
            try:
                holds += (Hold(place) for place in places)
            except HvdAsyncError:
                for hold in holds:
                    hold.close()
                raise
            self._let_go()
            self._invitation, self._holds = found, holds
        self._seen = written

    def _let_go(self) -> None:
        for hold in self._holds:
            hold.close()
        self._holds = []

    def _is_saved(self) -> bool:
        """Whether the store says that it has saved its state."""
        served = bytes(self._holds[0].map()[WORD_BYTES * Word.SERVED : WORD_BYTES * (Word.SERVED + 1)])
        return int.from_bytes(served, "little", signed=True) == Served.SAVED
