"""An observer that records nothing: benchmarks measure the store, not the recorder."""

from __future__ import annotations

from collections.abc import Sequence

from hvd_async.errors import HvdAsyncError
from hvd_async.store.arrival import Arrival, Refusal, Update
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.store.wire.stop import StopNotice


class NullObserver:
    """`Observer` that ignores every event."""

    def started(self, store: ParameterStore) -> None: ...

    def received(self, arrivals: Sequence[Arrival]) -> None: ...

    def updating(self) -> None: ...

    def refused(self, arrival: Arrival, refusal: Refusal) -> None:
        """Raise `HvdAsyncError`: no gradient of a benchmark is ever refused."""
        raise HvdAsyncError(f"batch {arrival.batch} of worker {arrival.worker}: refused ({refusal.value}), expected none")

    def updated(self, update: Update) -> None: ...

    def lost(self, worker: int, reason: str, returned: Sequence[int]) -> None: ...

    def evaluated(self, version: int, statistics: Sequence[float]) -> None: ...

    def joined(self, worker: int) -> None: ...

    def left(self, worker: int, returned: Sequence[int]) -> None: ...

    def num_evaluations_due(self) -> int:
        return 0

    def is_finished(self) -> bool:
        """Return False: the workers decide when a benchmark ends."""
        return False

    def ended(self, notice: StopNotice | None) -> None: ...

    def settle(self) -> None:
        """Do nothing: there is nothing to write."""

    def rescue(self, stop: StopNotice | None = None) -> bool:
        """Do nothing: there is nothing to save."""
        return True
