"""The most common cluster in fewer calls: each worker pushes for itself and waits for its exchange.

What happens is what `Cluster` does, event for event; only the way through the code is shorter, which decides how many workers can
be simulated.
"""

from __future__ import annotations

from heapq import heappush

from hvd_async.config import RunConfig
from hvd_async.emulation.step_times import StepTimes
from hvd_async.simulation.clock import Clock
from hvd_async.simulation.cluster import Cluster
from hvd_async.simulation.costs import Costs
from hvd_async.simulation.simulated_store import SimulatedStore
from hvd_async.simulation.workers import NONE, Sender, VirtualWorker


class DirectCluster(Cluster):
    """A `Cluster` without `push.node_sum` and `push.overlap`."""

    def run(self) -> None:
        """See `Cluster.run`."""
        assert not self._aggregates_nodes and not self._is_overlapped
        super().run()

    def _end_step(self, worker: VirtualWorker) -> None:
        """As `_end_step`, `_hand_over`, `_contribute` and `_send`."""
        clock = self._clock
        now = clock.now
        self.totals.computing += worker.seconds
        worker.out_batch = worker.first_batch = worker.batch
        worker.out_base = worker.oldest_base = worker.base
        worker.out_provisional = worker.provisional
        worker.out_seconds = worker.seconds
        worker.out_took = worker.took
        worker.contributors = worker.members
        worker.sent = now
        node = worker.node
        if node.is_store:
            heappush(clock.traffic, (now + self._costs.memory_push_seconds, clock.draw(), self._reach, worker))
            return
        sending = node.sending
        sending.busy += sending.seconds
        if sending.free > now:
            begins = sending.free
            sending.free = begins + sending.seconds
            heappush(clock.traffic, (begins, clock.draw(), self._enter, worker))
        else:
            sending.free = now + sending.seconds
            self._enter(worker)

    def _end_pull(self, sender: Sender) -> None:
        """As `_end_pull`, `_go_on`, `_claim` and `_begin_step`."""
        batch, limit = self._claims, self._num_batches
        is_last = self._is_over or (limit is not None and batch >= limit)
        if is_last or self._announced is not None or sender.held == NONE:
            super()._end_pull(sender)
            return
        clock, totals, worker = self._clock, self.totals, sender.members[0]
        now, reached, waited = clock.now, worker.reached, worker.waited
        worker.took = worker.took_next = took = (reached - worker.sent, waited - reached, now - waited)
        totals.pushing += took[0]
        totals.pulling += took[2]
        self._claims = batch + 1
        worker.held = worker.version = worker.brought = worker.base = worker.pulled
        worker.held_provisional = worker.provisional = worker.version_provisional = worker.pulled_provisional
        worker.batch = batch
        step = worker.steps
        tokens = self._store.tokens(batch) if self._asks_for_tokens else 0
        worker.seconds = seconds = self._times.seconds(worker.number, step, tokens)
        worker.steps = step + 1
        clock.at_end_of_step(now + seconds, self._end_step, worker)


def make_cluster(
    config: RunConfig, costs: Costs, times: StepTimes, store: SimulatedStore, clock: Clock, num_batches: int | None
) -> Cluster:
    """The quickest `Cluster` for `config`."""
    kind = Cluster if config.push.node_sum or config.push.overlap else DirectCluster
    return kind(config, costs, times, store, clock, num_batches)


def make_clock(config: RunConfig, times: StepTimes, num_workers: int) -> Clock:
    """A clock for the run's seed, with buckets of a few dozen ends of steps."""
    return Clock(config.seed, 32 * max(1e-6, times.typical_seconds) / num_workers)
