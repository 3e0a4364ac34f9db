"""A journal that writes nothing: benchmarks measure the store, not what a run writes down."""

from __future__ import annotations

from collections.abc import Sequence

from hvd_async.errors import HvdAsyncError
from hvd_async.store.parameter_store import Arrival, ParameterStore, Refusal, Update
from hvd_async.store.wire.layout import StopNotice


class SilentJournal:
    """Implements `store.server.Journal`."""

    def started(self, store: ParameterStore) -> None:
        """See `Journal.started`."""

    def received(self, arrivals: Sequence[Arrival]) -> None:
        """See `Journal.received`."""

    def updating(self) -> None:
        """See `Journal.updating`."""

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """See `Journal.refused`. A benchmark has no gradient to refuse: raises `HvdAsyncError`."""
        raise HvdAsyncError(f"batch {arrival.batch} of worker {arrival.worker}: refused ({refusal.value}), expected none")

    def updated(self, update: Update) -> None:
        """See `Journal.updated`."""

    def evaluated(self, version: int, statistics: Sequence[float]) -> None:
        """See `Journal.evaluated`."""

    def num_evaluations_due(self) -> int:
        """See `Journal.num_evaluations_due`: none."""
        return 0

    def is_finished(self) -> bool:
        """See `Journal.is_finished`: the workers decide."""
        return False

    def ended(self, notice: StopNotice | None) -> None:
        """See `Journal.ended`."""

    def settle(self) -> None:
        """See `Journal.settle`: there is nothing to write."""

    def rescue(self, stop: StopNotice | None = None) -> None:
        """See `Journal.rescue`: there is nothing to save."""
