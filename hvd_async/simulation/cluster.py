"""The asynchronous strategy in virtual time: workers that claim batches and compute, between pushes and pulls.

Which rank waits for which, and when, follows `StoreServer`, `StoreClient`, `NodeAggregator` and the workers of `strategies`:
`StoreLoop` is the store's part, `Transfers` the part between. The store's decisions come from a `SimulatedStore`: the real
store, or one that only counts.
"""

from __future__ import annotations

from hvd_async.simulation.costs import Link
from hvd_async.simulation.shared_state import TimeTotals, World
from hvd_async.simulation.store_loop import StoreLoop
from hvd_async.simulation.transfers import Transfers
from hvd_async.simulation.workers import NONE, Sender, VirtualWorker, make_workers


class Cluster:
    """Workers, links and the store's loop, for one run.

    Attributes:
        senders: the workers, or with node sums the nodes, that push and pull.
        workers: all workers, by number.
    """

    def __init__(self, world: World, num_batches: int | None) -> None:
        """Borrow `world`. `num_batches`: batches that end the run, or None."""
        self._world = world
        self._clock = world.clock
        self._num_batches = num_batches
        nodes, node_of = world.costs.nodes(world.config)
        self.senders: list[Sender]
        self.workers: list[VirtualWorker]
        self.senders, self.workers = make_workers(nodes, node_of, world.aggregates_nodes)
        self._loop = StoreLoop(world)
        self._transfers = Transfers(world, self._loop, self._resume)
        self._claims = 0
        self._num_present = len(self.workers)

    @property
    def totals(self) -> TimeTotals:
        """Seconds of the run by activity."""
        return self._world.totals

    @property
    def store_links(self) -> tuple[Link, Link]:
        """The store's links for pushes and for pulls."""
        return self._transfers.ingress, self._transfers.egress

    def run(self) -> None:
        """Run from the first pull to the last update."""
        for sender in self.senders:
            self._transfers.begin(sender)
        self._clock.run()
        assert self._num_present == 0 and self._loop.is_idle, "a worker waits for an event that will not happen"
        self._loop.finish()

    def versions_in_use(self) -> set[int]:
        """Return the versions on which gradients are, or are about to be, computed that are not taken in yet."""
        used = {sender.pulled for sender in self.senders}
        for worker in self.workers:
            used |= {worker.base, worker.out_base, worker.version, worker.brought}
            used |= {version for version, _ in (*worker.later, *worker.out_later)}
        return used

    def _claim(self) -> int:
        if self._loop.is_over or (self._num_batches is not None and self._claims >= self._num_batches):
            return NONE
        self._claims += 1
        return self._claims - 1

    def _begin_step(self, worker: VirtualWorker, batch: int) -> None:
        world = self._world
        worker.batch = batch
        worker.base = worker.version
        worker.provisional = worker.base_provisional = worker.version_provisional
        if world.announced is not None:
            world.announced.add(worker.base)
        weight = world.store.weight(batch) if world.times.asks_for_weight else 0
        if world.has_micro_batches:
            worker.num_micro_batches, worker.later, worker.pulled_between = world.store.num_micro_batches(batch), [], 0.0
        worker.seconds = seconds = world.times.seconds(worker.number, worker.steps, weight, worker.num_micro_batches)
        worker.steps += 1
        if worker.num_micro_batches > 1:
            self._clock.at(self._clock.now + seconds / worker.num_micro_batches, self._pull_newer, worker)
            return
        self._clock.at_end_of_step(self._clock.now + seconds, self._end_step, worker)

    def _pull_newer(self, worker: VirtualWorker) -> None:
        """Pull after a micro-batch, and compute the next one."""
        now, number = self._clock.now, worker.num_micro_batches
        ends = now if self._world.is_synchronous(worker.version) else self._transfers.pull_newer(worker)
        worker.later.append((worker.version, worker.provisional))
        worker.pulled_between += ends - now
        at_end = self._pull_newer if len(worker.later) + 1 < number else self._end_step
        self._clock.at(ends + worker.seconds / number, at_end, worker)

    def _end_step(self, worker: VirtualWorker) -> None:
        self._world.totals.computing += worker.seconds
        self._world.totals.pulling += worker.pulled_between
        if worker.exchanging:
            worker.is_blocked = True
        else:
            self._hand_over(worker)

    def _hand_over(self, worker: VirtualWorker) -> None:
        """Push the finished gradient; with overlap, compute the next one meanwhile."""
        worker.out_batch = worker.batch
        worker.out_base = worker.base
        worker.out_provisional = worker.base_provisional
        worker.out_seconds = worker.seconds
        worker.out_later = worker.later
        pushed, waited, pulled = worker.took
        worker.out_took = (pushed, waited, pulled + worker.pulled_between)
        if self._world.is_overlapped:
            self._settle(worker)
            worker.waits = not worker.ahead or worker.ahead[0] == NONE or self._world.is_synchronous(worker.version)
            worker.exchanging = True
            if not worker.waits:
                self._begin_step(worker, worker.ahead.popleft())
        self._transfers.contribute(worker)

    def _settle(self, worker: VirtualWorker) -> None:
        """Use the parameters of the last pull from now on."""
        worker.took = worker.took_next
        worker.version = worker.brought
        worker.version_provisional = worker.brought_provisional

    def _resume(self, worker: VirtualWorker) -> None:
        """Begin the next step after a pull, or leave."""
        if not self._world.is_overlapped:
            self._settle(worker)
            batch = self._claim()
        else:
            was_exchanging, worker.exchanging = worker.exchanging, False
            if was_exchanging and not worker.waits:
                worker.ahead.append(self._claim())
                if worker.is_blocked:
                    worker.is_blocked = False
                    self._hand_over(worker)
                return
            self._settle(worker)
            batch = self._claim_ahead(worker)
        if batch == NONE:
            self._leave(worker)
        else:
            self._begin_step(worker, batch)

    def _claim_ahead(self, worker: VirtualWorker) -> int:
        """Return the next batch of `worker`, after claiming enough batches to have one to compute during a push."""
        wanted = 1 if self._world.is_synchronous(worker.version) else 2
        while len(worker.ahead) < wanted and (not worker.ahead or worker.ahead[-1] != NONE):
            worker.ahead.append(self._claim())
        return worker.ahead.popleft()

    def _leave(self, worker: VirtualWorker) -> None:
        sender = worker.sender
        sender.members.remove(worker)
        self._num_present -= 1
        self._world.totals.present += self._clock.now
        self._loop.leave(worker)
        self._transfers.send_if_complete(sender)
