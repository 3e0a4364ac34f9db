"""Who is told of everything that happens to a store: to record a run, or to do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.wire.stop import StopNotice


class Observer(Protocol):
    """What is told of everything that happens to a store. Its methods return at once; slow work is done elsewhere."""

    def started(self, store: ParameterStore) -> None:
        """`store` is ready and workers begin; it stays the same object to the end of the run."""

    def received(self, arrivals: Sequence[Arrival]) -> None:
        """A push with `arrivals` has reached the store, which is about to decide on their fate."""

    def updating(self) -> None:
        """The store begins to make the next version."""

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """`arrival` is in no update."""

    def updated(self, update: Update) -> None:
        """The store has just made `update`; its parameters are those of that version until this returns."""

    def evaluated(self, version: int, statistics: Sequence[float]) -> None:
        """A worker evaluated the snapshot of `version`."""

    def num_evaluations_due(self) -> int:
        """Snapshots that are on disk and wait to be evaluated, or have been, since the start of this process."""

    def is_finished(self) -> bool:
        """Whether the run is to end before its data do: patience is exhausted, its time is over, or it has diverged."""

    def ended(self, notice: StopNotice | None) -> None:
        """No more updates will be made; `notice` is why, None when the data ended. Blocks until all that is to outlive this
        process is saved."""

    def settle(self) -> None:
        """`store` is lost: finish writing what was handed over before. Blocks, and raises nothing."""

    def rescue(self, stop: StopNotice | None = None) -> None:
        """Another rank failed, and `store` is whole: save it. Blocks, and raises nothing. `stop`: the run was asked to stop, and
        counts as stopped."""
