"""The store's loop in virtual time: one push after the other, and updates between them. Its model is `StoreServer`."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from hvd_async.simulation.workers import Sender, VirtualWorker
from hvd_async.simulation.world import World


class StoreLoop:
    """Takes in pushes that lie in the store's memory, and publishes versions.

    Attributes:
        published: the version that workers can read.
        following: the version that is announced: above `published` while an update is made or held back.
        is_over: whether the run ends with the newest version.
    """

    def __init__(self, world: World) -> None:
        """`world` stays the caller's."""
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
        """Call `wait(sender)` when a push was taken in, or its fate is known; `let_pull()` when a version is out. Called once."""
        self._wait, self._let_pull = wait, let_pull

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for the store."""
        return not self._waiting

    def reach(self, sender: Sender) -> None:
        """Have what `sender` pushed, which is in the store's memory now, taken in when it is its turn."""
        if self._admits_all and not self._is_busy:  # then no other push waits
            self._take_in(sender)
            return
        self._waiting[sender.first_batch] = sender
        if not self._is_busy:
            self._serve()

    def leave(self, worker: VirtualWorker) -> None:
        """Remember that `worker` has left; the store learns of it in its next turn."""
        self._leavers.append(worker)

    def notice_leavers(self) -> None:
        """Let the store learn of workers that have left, if it has nothing else to do."""
        if self._leavers and not self._is_busy:
            self._serve()

    def finish(self) -> None:
        """Make the last update of what is pending at the end."""
        if self._store.finish():
            seconds = self._world.costs.update_seconds
            self._clock.now += seconds
            self._world.totals.updates += seconds
            self._store.published(None)

    def _serve(self) -> None:
        """Take in the next push that the store admits, or else dismiss a worker that has left."""
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
        """Make the next version, whose arrivals are complete, if it is not held back; see `StoreServer`."""
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
        """Tell those who wait that the fate of all that was taken in is known."""
        for sender in self._unreleased:
            sender.is_released = True
            if sender.is_waiting:
                sender.is_waiting = False
                self._clock.at(self._clock.now, self._wait, sender)
        self._unreleased.clear()
