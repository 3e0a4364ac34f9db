"""The models that a run exports: the best so far, and the last."""

from __future__ import annotations

from hvd_async.runs.evaluations import EvaluationHistory, EvaluationResult
from hvd_async.runs.recorder_context import RunContext
from hvd_async.runs.recorder_part import RunPart
from hvd_async.runs.snapshots import read_snapshot
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.system.background_writer import BackgroundWriter


class Models(RunPart):
    """Exports models in the task's format. The history of evaluations contains a result before this part gets it."""

    def __init__(self, run: RunContext, writer: BackgroundWriter, history: EvaluationHistory) -> None:
        """All arguments stay the caller's."""
        self._run = run
        self._writer = writer
        self._history = history

    def evaluated(self, result: EvaluationResult) -> None:
        """Export the model of `result` in the background if it is the best so far."""
        if result == self._history.best:
            self._writer.submit(self._export_best, result)

    def export_last(self, store: ParameterStore) -> None:
        """Export the parameters of the last version. Blocks on the disk."""
        run, last = self._run, self._history.last
        tensors = run.flat.named_tensors(store.evaluated_parameters)
        run.task.export(run.folder.models / "last", tensors, store.version, {} if last is None else last.scores)

    def export_best_again(self) -> None:
        """Export the best model of a resumed run again: the existing export may be of a version after the checkpoint."""
        best = self._history.best
        if best is not None and self._run.folder.snapshot(best.version).exists():
            self._writer.submit(self._export_best, best)

    def _export_best(self, best: EvaluationResult) -> None:
        run = self._run
        tensors = run.flat.named_tensors(read_snapshot(run.folder, best.version))
        run.task.export(run.folder.models / "best", tensors, best.version, best.scores)
