"""Snapshots: the parameters of exactly one version each, evaluated during or after training."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import torch

from hvd_async.runs.checkpoint import read_tensors, write_tensors
from hvd_async.runs.evaluations import EvaluationHistory, EvaluationResult
from hvd_async.runs.folder import RunFolder
from hvd_async.runs.recorder_context import RunContext, TrainingClock, VersionCopies
from hvd_async.runs.recorder_part import RunPart
from hvd_async.store.arrival import Update
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.system.background_writer import BackgroundWriter

_NAME = "parameters"


class Snapshots(RunPart):
    """Takes the snapshots that `validation` requires, and tracks those that are still to be evaluated."""

    def __init__(
        self,
        run: RunContext,
        clock: TrainingClock,
        writer: BackgroundWriter,
        copies: VersionCopies,
        history: EvaluationHistory,
    ) -> None:
        """All arguments stay the caller's; `history` contains the run's evaluations."""
        self._run = run
        self._clock = clock
        self._writer = writer
        self._copies = copies
        self._history = history
        self._moments: dict[int, tuple[float, float]] = {}  # version of a snapshot -> weight and seconds then
        self._written: list[Future[None]] = []
        self._num_written = 0
        self._store: ParameterStore
        self._weight: float = 0.0  # of all updates so far

    def started(self, store: ParameterStore) -> None:
        """Remember the store."""
        self._store = store
        self._weight = store.weight

    def updated(self, update: Update) -> None:
        """Take a snapshot if one is due."""
        before, self._weight = self._weight, self._store.weight
        if self._run.task.metrics and self._run.config.validation.is_due(update.version, before, self._weight):
            self.take()

    def take(self) -> None:
        """Have a snapshot of the store's version written in the background."""
        version = self._store.version
        self._moments.setdefault(version, (self._store.weight, self._clock.seconds))
        vector = self._copies.read("average" if self._run.config.optimizer.average_decay else "parameters")
        self._written.append(self._writer.submit(write_snapshot, self._run.folder, version, vector, num_bytes=vector.nbytes))

    def take_last(self) -> None:
        """Take a snapshot of the last version of a complete run, unless it exists, was evaluated, or nothing is measured.
        Blocks on the disk."""
        version = self._store.version
        if version in self._history.versions or not self._run.task.metrics:
            return
        self._writer.wait()
        if not self._run.folder.snapshot(version).exists():  # not due, or an earlier process could not write it
            self.take()

    def result_of(self, version: int, scores: Mapping[str, float]) -> EvaluationResult:
        """Return the result of evaluating the snapshot of `version`, with the weight and seconds when it was taken."""
        weight, seconds = self._moments[version]
        return EvaluationResult(version, weight, seconds, scores)

    def num_written(self) -> int:
        """Return how many snapshots of this process are on disk. Does not block."""
        while len(self._written) > self._num_written and self._written[self._num_written].done():
            self._num_written += 1
        return self._num_written

    def unmeasured(self) -> list[int]:
        """Return the versions whose evaluation is open."""
        return sorted(self._moments.keys() - self._history.versions)

    def to_evaluate(self) -> list[int]:
        """Return the versions whose evaluation is open and whose snapshots are on disk; report missing ones. Blocks."""
        self._writer.wait()
        versions, folder = self.unmeasured(), self._run.folder
        missing = [version for version in versions if not folder.snapshot(version).exists()]
        if missing:
            listed = ", ".join(map(str, missing))
            self._run.progress.say(f"{folder.snapshots}: got no snapshots of versions {listed}, which are not measured")
        return [version for version in versions if version not in missing]

    def state(self) -> dict[str, Any]:
        """Return the weight and seconds at each snapshot."""
        return {"moments": self._moments}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the weight and seconds at each snapshot."""
        self._moments = {int(version): (weight, seconds) for version, (weight, seconds) in state["moments"].items()}


def read_snapshot(folder: RunFolder, version: int) -> torch.Tensor:
    """Return the parameters of a snapshot: [size], float32. Raises `CheckpointError` if it is missing or damaged."""
    return read_tensors(folder.snapshot(version))[_NAME]


def write_snapshot(folder: RunFolder, version: int, vector: torch.Tensor) -> None:
    """Write the snapshot of `version`: [size], float32. Raises `DataError` if the file system refuses."""
    write_tensors(folder.snapshot(version), {_NAME: vector})
