"""Interface of the observer of a store, such as the recorder of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.wire.stop import StopNotice


class Observer(Protocol):
    """Receiver of all events of a store. Its methods return at once unless they say otherwise; slow work is done
    elsewhere."""

    def started(self, store: ParameterStore) -> None:
        """Note that `store` is ready and workers begin. `store` stays the same object until the run ends."""

    def received(self, arrivals: Sequence[Arrival]) -> None:
        """Note that a push with `arrivals` has reached the store, which has not decided on them yet."""

    def updating(self) -> None:
        """Note that the store begins to make the next version."""

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """Note that `arrival` is refused: it is in no update."""

    def updated(self, update: Update) -> None:
        """Note that the store has made `update`. The store's parameters stay those of this version until the call
        returns."""

    def evaluated(self, version: int, statistics: Sequence[float]) -> None:
        """Take the result of a worker that evaluated the snapshot of `version`."""

    def lost(self, worker: int, reason: str, returned: Sequence[int]) -> None:
        """Note that the run goes on without `worker`, which died or failed for `reason`; others compute the batches
        `returned`."""

    def joined(self, worker: int) -> None:
        """Note that a process has joined the run as `worker`."""

    def left(self, worker: int, returned: Sequence[int]) -> None:
        """Note that `worker`, which had joined, has left; others compute the batches `returned`."""

    def num_evaluations_due(self) -> int:
        """Return how many snapshots on disk wait for evaluation or were evaluated, since the start of this process."""

    def is_finished(self) -> bool:
        """Whether the run is to end before its data end: patience is exhausted, time is over, or the run has diverged."""

    def ended(self, notice: StopNotice | None) -> None:
        """Save everything that is to outlive this process; blocks. No more updates follow. `notice` is the reason, None when
        the data ended."""

    def settle(self) -> None:
        """Finish all writing that was begun; the store is lost. Blocks, and raises nothing."""

    def rescue(self, stop: StopNotice | None = None) -> bool:
        """Save the store, which is whole, after the failure of another rank; return whether that was done. Blocks, and raises
        nothing. `stop`: the run was
        asked to stop, and counts as stopped."""
