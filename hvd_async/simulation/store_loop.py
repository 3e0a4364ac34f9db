"""The store's loop in virtual time: one push after the other, with updates between. It follows `StoreServer`."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from hvd_async.simulation.shared_state import World
from hvd_async.simulation.workers import Sender, VirtualWorker


class StoreLoop:
    """Loop that takes in pushes from the store's memory and publishes versions.

    Attributes:
        published: version that workers can read.
        following: announced version, above `published` while an update is made or held back.
        is_over: whether the run ends with the newest version.
    """

    def __init__(self, world: World) -> None:
        """Borrow `world`."""
        self._world = world
        self._store = world.store
        self._clock = world.clock
        self.published = self.following = world.store.version
        self.is_over = world.store.is_over()
        self._admits_all = not world.may_be_synchronous and not world.waits_for_stragglers
        self._waiting: OrderedDict[int, Sender] = OrderedDict()  # pushes in the store's memory, by their first batch
        self._unreleased: list[Sender] = []
        self._leavers: deque[VirtualWorker] = deque()
        self._is_busy = False
        self._has_made = False

    def connect(self, wait: Callable[[Sender], None], let_pull: Callable[[], None]) -> None:
        """Set the callbacks, once: `wait(sender)` when a push is taken in or its outcome is known, `let_pull()` after a
        version."""
        self._wait, self._let_pull = wait, let_pull

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for the store."""
        return not self._waiting

    def reach(self, sender: Sender) -> None:
        """Queue the push of `sender`, which is in the store's memory now, to be taken in at its turn."""
        if self._admits_all and not self._is_busy:  # then no other push waits
            self._take_in(sender)
            return
        self._waiting[sender.first_batch] = sender
        if not self._is_busy:
            self._serve()

    def leave(self, worker: VirtualWorker) -> None:
        """Note that `worker` has left; the store learns of this in its next turn."""
        self._leavers.append(worker)

    def notice_leavers(self) -> None:
        """Let an idle store learn of workers that have left."""
        if self._leavers and not self._is_busy:
            self._serve()

    def finish(self) -> None:
        """Make the last update, from the arrivals that are pending at the end."""
        if self._store.finish():
            seconds = self._world.costs.update_seconds
            self._clock.now += seconds
            self._world.totals.updates += seconds
            self._store.published(None)

    def _serve(self) -> None:
        """Take in the next push that the store admits; if there is none, handle workers that have left."""
        assert not self._is_busy
        while True:
            sender = self._next_push()
            if sender is not None:
                self._take_in(sender)
                break
            if not self._leavers:
                return
            self._store.leave(self._leavers.popleft().number)
            if self._store.is_complete() and self._make_version():
                self._is_busy = True
                self._clock.at(self._clock.now + self._world.costs.update_seconds, self._end_turn, None)
                return

    def _next_push(self) -> Sender | None:
        waiting, store = self._waiting, self._store
        if not waiting:
            return None
        if not self.is_over:
            if self._world.is_synchronous(store.version):
                sender = waiting.get(store.watermark)
                if sender is None or not store.admits(sender):
                    return None
                return waiting.pop(sender.first_batch)
            if self._world.waits_for_stragglers:
                sender = next((sender for sender in waiting.values() if store.admits(sender)), None)
                return None if sender is None else waiting.pop(sender.first_batch)
        return waiting.popitem(last=False)[1]

    def _take_in(self, sender: Sender) -> None:
        world = self._world
        if world.announced is not None:
            for worker in sender.contributors:
                world.announced.drop(worker.out_base)
        if self.is_over:
            self._store.refuse(sender)
            sender.is_released = True
        else:
            sender.is_released = not self._store.accept(sender)
            if world.may_be_synchronous and not sender.is_released:
                self._unreleased.append(sender)
        seconds = world.costs.arrival_seconds
        world.totals.arrivals += seconds
        if self._store.is_complete() and self._make_version():
            seconds += world.costs.update_seconds
        self._is_busy = True
        self._clock.at(self._clock.now + seconds, self._end_turn, sender)

    def _make_version(self) -> bool:
        """Make the next version, whose arrivals are complete, unless it is held back, as `StoreServer` does."""
        store = self._store
        self.following = self.published + 1
        self._has_made = store.advance(self._world.oldest_under_way)
        if self._has_made:
            self._world.totals.updates += self._world.costs.update_seconds
        elif not store.num_pending:  # the sum is not finite: there is no next version yet
            self.following = self.published
            self._release_all()
            self._let_pull()
        return self._has_made

    def _end_turn(self, sender: Sender | None) -> None:
        self._is_busy = False
        if self._has_made:
            self._has_made = False
            self._publish()
        # The store takes its next turn before a worker has noticed that it may continue.
        if self._waiting or self._leavers:
            self._serve()
        if sender is not None:
            self._wait(sender)

    def _publish(self) -> None:
        self.published = self.following = self._store.version
        self._store.published(self._world.oldest_under_way)
        self.is_over = self.is_over or self._store.is_over()
        self._release_all()
        self._let_pull()

    def _release_all(self) -> None:
        """Wake the waiting senders: the outcome of all arrivals taken in is known."""
        for sender in self._unreleased:
            sender.is_released = True
            if sender.is_waiting:
                sender.is_waiting = False
                self._clock.at(self._clock.now, self._wait, sender)
        self._unreleased.clear()
