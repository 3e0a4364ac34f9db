"""Pushes and pulls in virtual time, over shared links. They follow `StoreClient` and `NodeAggregator`."""

from __future__ import annotations

from collections.abc import Callable

from hvd_async.simulation.costs import Link
from hvd_async.simulation.shared_state import World
from hvd_async.simulation.store_loop import StoreLoop
from hvd_async.simulation.workers import NONE, Sender, VirtualWorker


class Transfers:
    """Transfers of gradients to the store, and of parameters back.

    Attributes:
        ingress: the store's link for pushes.
        egress: the store's link for pulls.
    """

    def __init__(self, world: World, loop: StoreLoop, resume: Callable[[VirtualWorker], None]) -> None:
        """Make the links. `loop` serves pushes; `resume(worker)` is called when a worker has pulled."""
        self._world = world
        self._costs = world.costs
        self._clock = world.clock
        self._loop = loop
        self._resume = resume
        self.ingress = Link(world.costs.push_bytes, world.costs.store_bytes_per_second)
        self.egress = Link(world.costs.pull_bytes, world.costs.store_bytes_per_second)
        self._held_back: list[Sender] = []  # pulls that wait for the next version
        loop.connect(self._wait, self._let_pull)

    def begin(self, sender: Sender) -> None:
        """Begin the first pull of `sender`."""
        sender.contributors = list(sender.members)
        self._clock.at(self._clock.now, self._begin_pull, sender)

    def contribute(self, worker: VirtualWorker) -> None:
        """Push the gradient of `worker`, or add it to the sum of its node."""
        sender = worker.sender
        sender.contributors.append(worker)
        if self._world.aggregates_nodes:
            self.send_if_complete(sender)
        else:
            self._send(sender)

    def send_if_complete(self, sender: Sender) -> None:
        """Push for a node once all its computing workers have contributed and copied their gradients."""
        if self._world.aggregates_nodes and sender.contributors and len(sender.contributors) == len(sender.members):
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
        """Take the store's link, now that the node's is free."""
        now, ingress = self._clock.now, self.ingress
        ingress.take(now)
        sent = now + sender.node.sending.seconds
        ends = ingress.free if ingress.free > sent else sent
        self._clock.at(ends + self._costs.push_latency, self._reach, sender)

    def _reach(self, sender: Sender) -> None:
        sender.reached = self._clock.now
        self._loop.reach(sender)

    def _wait(self, sender: Sender) -> None:
        """Pull at once after a push was taken in, or wait for the update that contains it."""
        world = self._world
        if not world.may_be_synchronous or sender.is_released or not world.is_synchronous(sender.version):
            sender.waited = self._clock.now
            self._begin_pull(sender)
        else:
            sender.is_waiting = True

    def _begin_pull(self, sender: Sender) -> None:
        world, version = self._world, self._loop.published
        is_held_back = world.waits_for_stragglers and self._loop.following != version
        if is_held_back and all(worker.waits for worker in sender.contributors):
            self._held_back.append(sender)
            return
        if world.announced is not None:
            world.announced.add(version)
        sender.pulled = version
        provisional = world.store.provisional(version) if world.has_provisional else 0
        sender.pulled_provisional = provisional
        ends = self._end_of_pull(sender, version, provisional)
        if world.aggregates_nodes:
            ends += self._costs.memory_pull_seconds
        self._clock.at(ends, self._end_pull, sender)

    def pull_newer(self, sender: Sender) -> float:
        """Let `sender` pull in the middle of a step, which waits for nothing; return when the pull ends."""
        world, version = self._world, self._loop.published
        provisional = world.store.provisional(version) if world.has_provisional else 0
        ends = self._end_of_pull(sender, version, provisional)
        sender.version, sender.provisional = version, provisional
        return ends

    def _end_of_pull(self, sender: Sender, version: int, provisional: int) -> float:
        """Return when a pull of these parameters that begins now ends."""
        now, node, costs = self._clock.now, sender.node, self._costs
        if version == sender.version and provisional == sender.provisional:
            return now + (costs.memory_pull_latency if node.is_store else costs.pull_latency)
        if node.is_store:
            return now + costs.memory_pull_seconds
        egress, receiving = self.egress, node.receiving
        receiving.take(egress.take(now))
        return (egress.free if egress.free > receiving.free else receiving.free) + costs.pull_latency

    def _end_pull(self, sender: Sender) -> None:
        is_first = sender.version == NONE
        sender.version = version = sender.pulled
        sender.provisional = sender.pulled_provisional
        contributors, sender.contributors = sender.contributors, []
        took = (0.0, 0.0, 0.0)
        if not is_first:
            took = self._account(sender, len(contributors))
        for worker in contributors:
            worker.brought = version
            worker.brought_provisional = sender.pulled_provisional
            worker.took_next = took
        for worker in contributors:
            self._resume(worker)
        if self._world.announced is not None:
            self._world.announced.drop(version)
        self._loop.notice_leavers()

    def _account(self, sender: Sender, num_contributors: int) -> tuple[float, float, float]:
        """Return the seconds of the push, of waiting and of the pull that end now, as a worker records them."""
        pushed, waited = sender.reached - sender.sent, sender.waited - sender.reached
        pulled = self._clock.now - sender.waited
        self._world.totals.pushing += pushed * num_contributors
        self._world.totals.pulling += pulled * num_contributors
        return (0.0, pushed + waited + pulled, 0.0) if self._world.aggregates_nodes else (pushed, waited, pulled)

    def _let_pull(self) -> None:
        for sender in self._held_back:
            self._clock.at(self._clock.now, self._begin_pull, sender)
        self._held_back.clear()
