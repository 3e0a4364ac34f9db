"""The protocol of all that is recorded of a run: each part hears what happens, in one order, and keeps its own state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hvd_async.runs.evaluations import EvaluationResult
from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.parameter_store import ParameterStore


class RunPart:
    """One thing that is recorded of a run. A part overrides what concerns it; by default nothing is done.

    To record more of a run: a subclass in this folder, and its place in the list of `RunRecorder`.
    """

    def started(self, store: ParameterStore) -> None:
        """Hear that training begins on `store`, which stays the same object to the end."""

    def received(self, arrivals: Sequence[Arrival]) -> None:
        """Hear that a push with `arrivals` has reached the store."""

    def updating(self) -> None:
        """Hear that the store begins to make the next version."""

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """Hear that `arrival` is in no update."""

    def updated(self, update: Update) -> None:
        """Hear of `update`; the store's parameters are those of its version until this returns."""

    def evaluated(self, result: EvaluationResult) -> None:
        """Hear what an evaluation gave."""

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs of this part, as plain data whose keys no other part uses."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of all parts, as an earlier process saved it."""
