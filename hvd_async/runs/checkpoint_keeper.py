"""Schedule of checkpoints, and removal of the files that a checkpoint makes superfluous."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any

from hvd_async.errors import DataError
from hvd_async.runs.checkpoint import Checkpoint, SavedData, list_checkpoints, replace_data, save_checkpoint
from hvd_async.runs.evaluations import EvaluationHistory
from hvd_async.runs.events import Events
from hvd_async.runs.hashes import Hashes
from hvd_async.runs.recorder_context import RunContext, VersionCopies
from hvd_async.runs.recorder_part import RunPart
from hvd_async.store.arrival import Update
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.system.background_writer import BackgroundWriter

_SAVING_SECONDS = 2.0


class CheckpointKeeper(RunPart):
    """Saves the checkpoints of one run; keeps snapshots until a checkpoint contains their results. Used by one thread."""

    def __init__(
        self, run: RunContext, writer: BackgroundWriter, copies: VersionCopies, events: Events, history: EvaluationHistory
    ) -> None:
        """All arguments stay the caller's. In a simulated run no checkpoint is due by time: the run is not resumed, and its
        files depend on the seed alone."""
        self._run = run
        self._folder = run.folder
        self._training = run.config.training
        self._writer = writer
        self._copies = copies
        self._events = events
        self._history = history
        self._document: dict[str, Any] = {}  # plain data of the last checkpoint that was submitted
        self._saved: Future[SavedData] | None = None
        self._saved_at = time.monotonic()
        self._is_due = False
        self._removed: set[int] = set()  # versions whose snapshots were removed
        self._store: ParameterStore
        self._hashes: Hashes
        self._state: Callable[[], dict[str, Any]]

    def save_with(self, hashes: Hashes, state: Callable[[], dict[str, Any]]) -> None:
        """Set the hashes of each checkpoint, and `state`, which returns the merged state of all parts. Called once,
        first."""
        self._hashes, self._state = hashes, state

    def started(self, store: ParameterStore) -> None:
        """Start the interval after which the first checkpoint is due."""
        self._store = store
        self._saved_at = time.monotonic()

    def updated(self, update: Update) -> None:
        """Save a checkpoint if one is due."""
        if self._is_due_at(update.version):
            self.save()

    def _is_due_at(self, version: int) -> bool:
        """Whether a checkpoint is to be saved now, at `version`. Called once for each version.

        Memory suffices for one checkpoint that waits for the disk, so a due checkpoint waits briefly for the previous one.
        If the disk is slower than the run, the first version after the previous checkpoint was written is saved instead.
        """
        every, minutes = self._training.checkpoint_every, self._training.checkpoint_minutes
        by_time = minutes > 0 and not self._run.is_simulated
        is_time = by_time and time.monotonic() - self._saved_at >= 60 * minutes
        if not self._is_due and (is_time or (every > 0 and version % every == 0)):
            self._is_due = True
            if self._saved is not None:
                wait([self._saved], timeout=_SAVING_SECONDS)
        return self._is_due and (self._saved is None or self._saved.done())

    def save(self) -> None:
        """Have a checkpoint of the store's version written in the background."""
        self._hashes.take()
        tensors, data = self._store.state()
        copies = {name: self._copies.of(name, tensor) for name, tensor in tensors.items()}
        document = {"data_fingerprint": self._run.task.fingerprint(), "store": data, "recorder": self._state()}
        self._document = json.loads(json.dumps(document))  # what it holds changes meanwhile
        checkpoint = Checkpoint(copies, self._document)
        self._saved = self._writer.submit(self._write, checkpoint, self._superfluous())
        self._saved_at, self._is_due = time.monotonic(), False

    def save_state(self, *, is_last: bool = False) -> None:
        """Replace the state of all parts in the last checkpoint by the present state; its tensors stay."""
        assert self._saved is not None
        self._document = {**self._document, "recorder": json.loads(json.dumps(self._state()))}
        self._writer.submit(self._write_state, self._saved, self._document, self._superfluous(is_last))

    def _write(self, checkpoint: Checkpoint, superfluous: Sequence[int]) -> SavedData:
        self._events.log.sync()  # first, since the checkpoint requires the complete log
        version, keep = checkpoint.data["store"]["version"], self._training.keep_checkpoints
        saved = save_checkpoint(self._folder.checkpoints, version, checkpoint, keep)
        self._remove_snapshots(superfluous)
        return saved

    def _write_state(self, saved: Future[SavedData], document: Mapping[str, Any], superfluous: Sequence[int]) -> None:
        self._events.log.sync()
        replace_data(saved.result(), document)
        self._remove_snapshots(superfluous)

    def _superfluous(self, is_last: bool = False) -> list[int]:
        """Return versions whose snapshots no one needs once the state is saved. The best version's snapshot stays until the
        last save, since its model may have to be exported again."""
        best = self._history.best
        kept = set() if best is None or is_last else {best.version}
        return sorted(self._history.versions - self._removed - kept)

    def _remove_snapshots(self, versions: Sequence[int]) -> None:
        self._removed.update(versions)
        paths = [self._folder.snapshot(version) for version in versions]
        paths += [self._folder.buffers(version) for version in self._superfluous_buffers()]
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise DataError(f"{path}: cannot be removed: {error.strerror or error}") from None

    def _superfluous_buffers(self) -> list[int]:
        """Return the removed versions whose buffers no one needs. A run resumes with the newest buffers, unless its checkpoint
        has buffers of its own."""
        found = self._folder.versions_with_buffers()
        checkpoints = list_checkpoints(self._folder.checkpoints)
        has_own = bool(checkpoints) and self._folder.buffers_of_checkpoint(checkpoints[-1]).exists()
        return [version for version in (found if has_own else found[:-1]) if version in self._removed]
