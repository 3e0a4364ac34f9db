"""The interface of the store in a simulated cluster: its decisions, and the work behind them."""

from __future__ import annotations

from typing import Protocol

from hvd_async.simulation.workers import Sender


class SimulatedStore(Protocol):
    """The store's decisions, and the work behind them."""

    @property
    def version(self) -> int:
        """Newest version."""

    @property
    def num_pending(self) -> int:
        """Number of arrivals that are taken in and not applied yet."""

    @property
    def watermark(self) -> int:
        """First batch that has not arrived; read in lock-step only."""

    def weight(self, batch: int) -> float:
        """Return the weight of `batch`; called only if the length of steps depends on them."""

    def num_micro_batches(self, batch: int) -> int:
        """Return into how many micro-batches `batch` is divided."""

    def provisional(self, version: int) -> int:
        """Return the number of the provisional parameters on top of `version`, which is being pulled, or 0 if there are
        none."""

    def admits(self, sender: Sender) -> bool:
        """Whether the store takes in the push of `sender` now, as `ParameterStore.admits` decides."""

    def accept(self, sender: Sender) -> bool:
        """Take in the push of `sender`; return False if it is refused."""

    def refuse(self, sender: Sender) -> None:
        """Refuse the push of `sender`, which came after the end."""

    def is_complete(self) -> bool:
        """Whether the pending arrivals complete an update."""

    def advance(self, oldest_under_way: int | None) -> bool:
        """Make the next version, as `ParameterStore.advance` does; return whether there is a new one."""

    def leave(self, worker: int) -> None:
        """Note that `worker` has left."""

    def finish(self) -> bool:
        """Apply or refuse the pending arrivals at the end of the run; return whether there is a new version."""

    def published(self, oldest_under_way: int | None) -> None:
        """Note that workers can read only the newest version from now on. Older base versions may be released."""

    def is_over(self) -> bool:
        """Whether the run ends with the newest version."""
