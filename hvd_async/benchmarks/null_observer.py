"""An observer that writes nothing: benchmarks measure the store, not what a run writes down."""

from __future__ import annotations

from collections.abc import Sequence

from hvd_async.errors import HvdAsyncError
from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.wire.stop import StopNotice


class NullObserver:
    """Implements `Observer`."""

    def started(self, store: ParameterStore) -> None:
        """See `Observer.started`."""

    def received(self, arrivals: Sequence[Arrival]) -> None:
        """See `Observer.received`."""

    def updating(self) -> None:
        """See `Observer.updating`."""

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """See `Observer.refused`. A benchmark has no gradient to refuse: raises `HvdAsyncError`."""
        raise HvdAsyncError(f"batch {arrival.batch} of worker {arrival.worker}: refused ({refusal.value}), expected none")

    def updated(self, update: Update) -> None:
        """See `Observer.updated`."""

    def evaluated(self, version: int, statistics: Sequence[float]) -> None:
        """See `Observer.evaluated`."""

    def num_evaluations_due(self) -> int:
        """See `Observer.num_evaluations_due`: none."""
        return 0

    def is_finished(self) -> bool:
        """See `Observer.is_finished`: the workers decide."""
        return False

    def ended(self, notice: StopNotice | None) -> None:
        """See `Observer.ended`."""

    def settle(self) -> None:
        """See `Observer.settle`: there is nothing to write."""

    def rescue(self, stop: StopNotice | None = None) -> None:
        """See `Observer.rescue`: there is nothing to save."""
