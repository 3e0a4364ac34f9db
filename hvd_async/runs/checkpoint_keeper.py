"""When a run is saved, and what may go once it is."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any

import torch

from hvd_async.config import TrainingConfig
from hvd_async.errors import DataError
from hvd_async.runs.checkpoint import Checkpoint, SavedData, replace_data, save_checkpoint
from hvd_async.runs.evaluations import EvaluationHistory
from hvd_async.runs.event_log import EventLog
from hvd_async.runs.folder import RunFolder
from hvd_async.system.background_writer import BackgroundWriter

_SAVING_SECONDS = 2.0


class CheckpointKeeper:
    """Keeps the checkpoints of one run, and its snapshots until a checkpoint knows what they gave. Used by one thread."""

    def __init__(self, folder: RunFolder, training: TrainingConfig, writer: BackgroundWriter, *, by_time: bool) -> None:
        """`writer` does what waits for the disk. `by_time`: whether `training.checkpoint_minutes` counts."""
        self._folder = folder
        self._training = training
        self._writer = writer
        self._by_time = by_time
        self._document: dict[str, Any] = {}  # of the checkpoint that was handed over last
        self._saved: Future[SavedData] | None = None
        self._saved_at = time.monotonic()
        self._is_due = False
        self._removed: set[int] = set()  # versions whose snapshots have gone

    def begin(self) -> None:
        """Start the time after which the first checkpoint is due."""
        self._saved_at = time.monotonic()

    def is_due(self, version: int) -> bool:
        """Whether a checkpoint is to be saved now, at `version`; asked once for each.

        There is memory for one that waits for the disk. It is given a moment; where the disk is slower than the run, the first
        version after it has been written is saved instead.
        """
        every, minutes = self._training.checkpoint_every, self._training.checkpoint_minutes
        is_time = self._by_time and minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes
        if not self._is_due and (is_time or (every > 0 and version % every == 0)):
            self._is_due = True
            if self._saved is not None:
                wait([self._saved], timeout=_SAVING_SECONDS)
        return self._is_due and (self._saved is None or self._saved.done())

    def save(
        self, tensors: Mapping[str, torch.Tensor], document: Mapping[str, Any], log: EventLog, measured: EvaluationHistory
    ) -> None:
        """Have a checkpoint written. `tensors` are the keeper's; `document` is copied, and knows `measured`."""
        self._document = json.loads(json.dumps(document))  # the books go on meanwhile
        checkpoint = Checkpoint(tensors, self._document)
        self._saved = self._writer.submit(self._write, checkpoint, log, self._superfluous(measured))
        self._saved_at, self._is_due = time.monotonic(), False

    def save_books(
        self, books: Mapping[str, Any], log: EventLog, measured: EvaluationHistory, *, is_last: bool = False
    ) -> None:
        """Have the checkpoint that was saved last learn the `books`, which know `measured`; its tensors stay."""
        assert self._saved is not None
        self._document = {**self._document, "recorder": json.loads(json.dumps(books))}
        self._writer.submit(self._write_books, self._saved, self._document, log, self._superfluous(measured, is_last))

    def _write(self, checkpoint: Checkpoint, log: EventLog, superfluous: Sequence[int]) -> SavedData:
        log.sync()  # first: the checkpoint asks for all of it
        version, keep = checkpoint.data["store"]["version"], self._training.keep_checkpoints
        saved = save_checkpoint(self._folder.checkpoints, version, checkpoint, keep)
        self._remove_snapshots(superfluous)
        return saved

    def _write_books(
        self, saved: Future[SavedData], document: Mapping[str, Any], log: EventLog, superfluous: Sequence[int]
    ) -> None:
        log.sync()
        replace_data(saved.result(), document)
        self._remove_snapshots(superfluous)

    def _superfluous(self, measured: EvaluationHistory, is_last: bool = False) -> list[int]:
        """Versions whose snapshots nobody needs once the books are saved. That of the best version stays to the last: its model
        may have to be exported again."""
        best = measured.best
        kept = set() if best is None or is_last else {best.version}
        return sorted(measured.versions - self._removed - kept)

    def _remove_snapshots(self, versions: Sequence[int]) -> None:
        for version in versions:
            path = self._folder.snapshot(version)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise DataError(f"{path}: cannot be removed: {error.strerror or error}") from None
            self._removed.add(version)
