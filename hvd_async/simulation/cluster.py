"""The asynchronous strategy in virtual time: workers that compute, push and pull, and the loop of the store.

Who waits for whom, and when, is as with `StoreServer`, `StoreClient`, `NodeAggregator` and the workers of `strategies`. What
the store decides is asked of `SimulatedStore`: of the real store, or of one that only counts.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from hvd_async.config import RunConfig
from hvd_async.emulation.step_times import StepTimes
from hvd_async.simulation.announced import Announced
from hvd_async.simulation.clock import Clock
from hvd_async.simulation.costs import Costs, Link
from hvd_async.simulation.simulated_store import SimulatedStore
from hvd_async.simulation.totals import Totals
from hvd_async.simulation.workers import NONE, Sender, VirtualWorker, make_workers
from hvd_async.store.schedule import is_synchronous
from hvd_async.store.staleness import needs_base_parameters


class Cluster:
    """Workers, links and the store's loop. Lives for one run.

    Attributes:
        workers: all of them, by number.
        totals: where the time went.
    """

    def __init__(
        self, config: RunConfig, costs: Costs, times: StepTimes, store: SimulatedStore, clock: Clock, num_batches: int | None
    ) -> None:
        """All are the caller's; `num_batches` bounds the run, where it is given."""
        strategy = config.strategy
        self._strategy = strategy
        self._costs = costs
        self._times = times
        self._asks_for_tokens = times.asks_for_tokens
        self._store = store
        self._clock = clock
        self._num_batches = num_batches
        self._is_overlapped = config.push.overlap
        self._aggregates_nodes = config.push.node_sum
        self._may_be_synchronous = strategy.lockstep or strategy.synchronous_versions > 0
        self._waits_for_stragglers = strategy.waits_for_stragglers
        self._admits_all = not self._may_be_synchronous and not self._waits_for_stragglers
        announces = self._waits_for_stragglers or needs_base_parameters(strategy)
        self._announced = Announced() if announces else None
        nodes, node_of = costs.nodes(config)
        self.senders, self.workers = make_workers(nodes, node_of, self._aggregates_nodes)
        self.totals = Totals()
        self.ingress = Link(costs.push_bytes, costs.store_bytes_per_second)
        self.egress = Link(costs.pull_bytes, costs.store_bytes_per_second)
        self._claims = 0
        self._published = self._next = store.version
        self._waiting: OrderedDict[int, Sender] = OrderedDict()  # pushes in the store's memory, by their first batch
        self._unreleased: list[Sender] = []
        self._held_back: list[Sender] = []  # pulls that wait for the next version
        self._leavers: deque[VirtualWorker] = deque()
        self._num_present = len(self.workers)
        self._is_busy = False
        self._has_made = False
        self._is_over = store.is_over()

    def run(self) -> None:
        """From the first pull to the last update."""
        for sender in self.senders:
            sender.contributors = list(sender.members)
            self._clock.at(self._clock.now, self._begin_pull, sender)
        self._clock.run()
        assert self._num_present == 0 and not self._waiting, "somebody waits for what will not come"
        if self._store.finish():
            self._clock.now += self._costs.update_seconds
            self.totals.updates += self._costs.update_seconds
            self._store.published(None)

    def versions_in_use(self) -> set[int]:
        """Those on which a gradient is, or is about to be, computed, as far as it has not been taken in."""
        used = {sender.pulled for sender in self.senders}
        for worker in self.workers:
            used |= {worker.base, worker.out_base, worker.version, worker.brought}
        return used

    # Workers.

    def _claim(self) -> int:
        if self._is_over or (self._num_batches is not None and self._claims >= self._num_batches):
            return NONE
        self._claims += 1
        return self._claims - 1

    def _begin_step(self, worker: VirtualWorker, batch: int) -> None:
        worker.batch = batch
        worker.base = worker.version
        worker.provisional = worker.version_provisional
        if self._announced is not None:
            self._announced.add(worker.base)
        tokens = self._store.tokens(batch) if self._asks_for_tokens else 0
        worker.seconds = seconds = self._times.seconds(worker.number, worker.steps, tokens)
        worker.steps += 1
        self._clock.at_end_of_step(self._clock.now + seconds, self._end_step, worker)

    def _end_step(self, worker: VirtualWorker) -> None:
        self.totals.computing += worker.seconds
        if worker.exchanging:
            worker.is_blocked = True
        else:
            self._hand_over(worker)

    def _hand_over(self, worker: VirtualWorker) -> None:
        """Begin to exchange the gradient that is ready; with overlap, go on computing meanwhile."""
        worker.out_batch = worker.batch
        worker.out_base = worker.base
        worker.out_provisional = worker.provisional
        worker.out_seconds = worker.seconds
        worker.out_took = worker.took
        if not self._is_overlapped:
            self._contribute(worker)
            return
        self._settle(worker)
        worker.waits = not worker.ahead or worker.ahead[0] == NONE or self._is_synchronous(worker.version)
        worker.exchanging = True
        if not worker.waits:
            self._begin_step(worker, worker.ahead.popleft())
        self._contribute(worker)

    def _settle(self, worker: VirtualWorker) -> None:
        """Compute with what the last exchange brought from now on."""
        worker.took = worker.took_next
        worker.version = worker.brought
        worker.version_provisional = worker.brought_provisional

    def _go_on(self, worker: VirtualWorker) -> None:
        """After an exchange, or the first pull."""
        if not self._is_overlapped:
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
            wanted = 1 if self._is_synchronous(worker.version) else 2
            while len(worker.ahead) < wanted and (not worker.ahead or worker.ahead[-1] != NONE):
                worker.ahead.append(self._claim())
            batch = worker.ahead.popleft()
        if batch == NONE:
            self._leave(worker)
        else:
            self._begin_step(worker, batch)

    def _leave(self, worker: VirtualWorker) -> None:
        sender = worker.sender
        sender.members.remove(worker)
        self._num_present -= 1
        self.totals.present += self._clock.now
        self._leavers.append(worker)
        self._send_if_complete(sender)

    # Exchanges.

    def _contribute(self, worker: VirtualWorker) -> None:
        sender = worker.sender
        sender.contributors.append(worker)
        if self._aggregates_nodes:
            self._send_if_complete(sender)
        else:
            self._send(sender)

    def _send_if_complete(self, sender: Sender) -> None:
        """Of a team: once all who compute have contributed, and copied their gradients."""
        if self._aggregates_nodes and sender.contributors and len(sender.contributors) == len(sender.members):
            self._clock.at(self._clock.now + self._costs.memory_push_seconds, self._send, sender)

    def _send(self, sender: Sender) -> None:
        now, node = self._clock.now, sender.node
        contributors = sender.contributors
        if len(contributors) > 1:
            contributors.sort(key=lambda worker: worker.out_batch)
            sender.oldest_base = min(worker.out_base for worker in contributors)
        else:
            sender.oldest_base = contributors[0].out_base
        sender.first_batch = contributors[0].out_batch
        sender.sent = now
        if node.is_store:
            self._clock.at(now + self._costs.memory_push_seconds, self._reach, sender)
            return
        begins = node.sending.take(now)
        if begins > now:
            self._clock.at(begins, self._enter, sender)
        else:
            self._enter(sender)

    def _enter(self, sender: Sender) -> None:
        """The node's link is free for it, and the store's is the next."""
        now, ingress = self._clock.now, self.ingress
        ingress.take(now)
        sent = now + sender.node.sending.seconds
        ends = ingress.free if ingress.free > sent else sent
        self._clock.at(ends + self._costs.push_latency, self._reach, sender)

    def _reach(self, sender: Sender) -> None:
        sender.reached = self._clock.now
        if self._admits_all and not self._is_busy:  # then nobody else waits
            self._take_in(sender)
            return
        self._waiting[sender.first_batch] = sender
        if not self._is_busy:
            self._serve()

    def _wait(self, sender: Sender) -> None:
        """After a push was taken in: for the update that it went into, or not."""
        if not self._may_be_synchronous or sender.is_released or not self._is_synchronous(sender.held):
            sender.waited = self._clock.now
            self._begin_pull(sender)
        else:
            sender.is_waiting = True

    def _begin_pull(self, sender: Sender) -> None:
        now, version = self._clock.now, self._published
        if self._waits_for_stragglers and self._next != version and all(worker.waits for worker in sender.contributors):
            self._held_back.append(sender)
            return
        if self._announced is not None:
            self._announced.add(version)
        sender.pulled = version
        provisional = self._store.provisional(version) if self._strategy.has_provisional else 0
        sender.pulled_provisional = provisional
        node, costs = sender.node, self._costs
        if version == sender.held and provisional == sender.held_provisional:
            ends = now + (costs.memory_pull_latency if node.is_store else costs.pull_latency)
        elif node.is_store:
            ends = now + costs.memory_pull_seconds
        else:
            egress, receiving = self.egress, node.receiving
            receiving.take(egress.take(now))
            ends = (egress.free if egress.free > receiving.free else receiving.free) + costs.pull_latency
        if self._aggregates_nodes:
            ends += costs.memory_pull_seconds
        self._clock.at(ends, self._end_pull, sender)

    def _end_pull(self, sender: Sender) -> None:
        is_first = sender.held == NONE
        sender.held = version = sender.pulled
        sender.held_provisional = sender.pulled_provisional
        contributors, sender.contributors = sender.contributors, []
        took = (0.0, 0.0, 0.0)
        if not is_first:
            pushed, waited = sender.reached - sender.sent, sender.waited - sender.reached
            pulled = self._clock.now - sender.waited
            took = (0.0, pushed + waited + pulled, 0.0) if self._aggregates_nodes else (pushed, waited, pulled)
            self.totals.pushing += pushed * len(contributors)
            self.totals.pulling += pulled * len(contributors)
        for worker in contributors:
            worker.brought = version
            worker.brought_provisional = sender.pulled_provisional
            worker.took_next = took
        for worker in contributors:
            self._go_on(worker)
        if self._announced is not None:
            self._announced.drop(version)
        if self._leavers and not self._is_busy:
            self._serve()

    # The store.

    def _is_synchronous(self, version: int) -> bool:
        return self._may_be_synchronous and is_synchronous(self._strategy, version)

    def _serve(self) -> None:
        """The store has nothing to do: the next push that it admits, or else somebody who left."""
        assert not self._is_busy
        while True:
            sender = self._next_push()
            if sender is not None:
                self._take_in(sender)
                break
            if not self._leavers:
                return
            self._store.leave(self._leavers.popleft().number)
            if self._store.is_complete() and self._advance():
                self._is_busy = True
                self._clock.at(self._clock.now + self._costs.update_seconds, self._end_turn, None)
                return

    def _next_push(self) -> Sender | None:
        waiting = self._waiting
        if not waiting:
            return None
        if not self._is_over:
            if self._is_synchronous(self._store.version):
                sender = waiting.get(self._store.watermark)
                if sender is None or not self._store.admits(sender):
                    return None
                return waiting.pop(sender.first_batch)
            if self._waits_for_stragglers:
                sender = next((sender for sender in waiting.values() if self._store.admits(sender)), None)
                return None if sender is None else waiting.pop(sender.first_batch)
        return waiting.popitem(last=False)[1]

    def _take_in(self, sender: Sender) -> None:
        if self._announced is not None:
            for worker in sender.contributors:
                self._announced.drop(worker.out_base)
        if self._is_over:
            self._store.refuse(sender)
            sender.is_released = True
        else:
            sender.is_released = not self._store.accept(sender)
            if self._may_be_synchronous and not sender.is_released:
                self._unreleased.append(sender)
        seconds = self._costs.arrival_seconds
        self.totals.arrivals += seconds
        if self._store.is_complete() and self._advance():
            seconds += self._costs.update_seconds
        self._is_busy = True
        self._clock.at(self._clock.now + seconds, self._end_turn, sender)

    def _advance(self) -> bool:
        """Make the next version, whose arrivals are complete, if none is held back for; see `StoreServer._advance`."""
        store = self._store
        self._next = self._published + 1
        self._has_made = store.advance(self._oldest_under_way)
        if self._has_made:
            self.totals.updates += self._costs.update_seconds
        elif not store.num_pending:  # the sum is not finite: there is no next version yet
            self._next = self._published
            self._release_all()
            self._let_pull()
        return self._has_made

    @property
    def _oldest_under_way(self) -> int | None:
        return None if self._announced is None else self._announced.oldest

    def _end_turn(self, sender: Sender | None) -> None:
        self._is_busy = False
        if self._has_made:
            self._has_made = False
            self._publish()
        # The store goes on before a worker has noticed that it may.
        if self._waiting or self._leavers:
            self._serve()
        if sender is not None:
            self._wait(sender)

    def _publish(self) -> None:
        self._published = self._next = self._store.version
        self._store.published(self._oldest_under_way)
        self._is_over = self._is_over or self._store.is_over()
        self._release_all()
        self._let_pull()

    def _release_all(self) -> None:
        """The fate of all that was taken in is known."""
        for sender in self._unreleased:
            sender.is_released = True
            if sender.is_waiting:
                sender.is_waiting = False
                self._clock.at(self._clock.now, self._wait, sender)
        self._unreleased.clear()

    def _let_pull(self) -> None:
        for sender in self._held_back:
            self._clock.at(self._clock.now, self._begin_pull, sender)
        self._held_back.clear()
