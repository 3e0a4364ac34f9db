"""What a simulated cluster asks of the store: decisions, and whatever is computed for them."""

from __future__ import annotations

from typing import Protocol

from hvd_async.simulation.workers import Sender


class SimulatedStore(Protocol):
    """The store's decisions, and whatever is computed for them."""

    @property
    def version(self) -> int:
        """Of the parameters that were made last."""

    @property
    def num_pending(self) -> int:
        """Arrivals that were taken in and not applied."""

    @property
    def watermark(self) -> int:
        """The first batch that has not arrived; asked for in lock-step alone."""

    def tokens(self, batch: int) -> int:
        """Target tokens of `batch`; asked for where the length of steps depends on them."""

    def provisional(self, version: int) -> int:
        """Which provisional parameters are there on top of `version`, which is being pulled: a number of their own, or 0."""

    def admits(self, sender: Sender) -> bool:
        """See `ParameterStore.admits`."""

    def accept(self, sender: Sender) -> bool:
        """Take in what `sender` pushed; False if it is refused."""

    def refuse(self, sender: Sender) -> None:
        """What `sender` pushed came after the end."""

    def is_complete(self) -> bool:
        """See `ParameterStore.is_complete`."""

    def advance(self, oldest_under_way: int | None) -> bool:
        """See `ParameterStore.advance`: whether there is a new version."""

    def leave(self, worker: int) -> None:
        """See `ParameterStore.leave`."""

    def finish(self) -> bool:
        """See `ParameterStore.finish`: whether there is a new version."""

    def published(self, oldest_under_way: int | None) -> None:
        """Workers can read the newest version from now on, and no other; see `ParameterStore.forget_base_versions`."""

    def is_over(self) -> bool:
        """Whether the run is to end with the newest version."""
