"""The base class of the recorder's parts, which all get the same events in a fixed order and keep their own state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hvd_async.runs.evaluations import EvaluationResult
from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.parameter_store import ParameterStore


class RunPart:
    """Part of the recorder, for one kind of record. Methods do nothing by default; a part overrides those that it needs.

    To record more of a run, add a subclass in this folder, and its place in the list of `RunRecorder`.
    """

    def started(self, store: ParameterStore) -> None:
        """Note that training begins on `store`, which stays the same object until the end."""

    def received(self, arrivals: Sequence[Arrival]) -> None:
        """Note that a push with `arrivals` has reached the store."""

    def updating(self) -> None:
        """Note that the store begins to make the next version."""

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """Note that `arrival` is refused: it is in no update."""

    def updated(self, update: Update) -> None:
        """Note `update`. The store's parameters stay those of its version until the call returns."""

    def lost(self, worker: int, reason: str, returned: Sequence[int]) -> None:
        """Note that the run goes on without `worker`: see `Observer.lost`."""

    def joined(self, worker: int) -> None:
        """Note that a process has joined the run as `worker`."""

    def left(self, worker: int, returned: Sequence[int]) -> None:
        """Note that `worker`, which had joined, has left: see `Observer.left`."""

    def evaluated(self, result: EvaluationResult) -> None:
        """Note the result of an evaluation."""

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, as plain data whose keys no other part uses."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore this part from the merged `state` of all parts, as saved by an earlier process."""
