"""Durations of pushes, pulls, updates and sums in a simulated cluster: pure arithmetic, and links that record how long they
are busy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hvd_async.config import RunConfig
from hvd_async.store.wire.layout import slot_format

# Bytes per parameter. An Adam update reads parameters, sum and both moments, and writes all but the sum; an addition reads
# and writes the sum.
_UPDATE_BYTES = 28
_SUM_BYTES = 8


class Link:
    """One direction of a wire. Transfers follow each other, first come, first served.

    Attributes:
        free: time from which the link is free.
        busy: seconds of transfers so far.
    """

    __slots__ = ("busy", "free", "seconds")

    def __init__(self, num_bytes: float, bytes_per_second: float) -> None:
        """Make a link for transfers of `num_bytes`."""
        self.seconds = num_bytes / bytes_per_second
        self.free = 0.0
        self.busy = 0.0

    def take(self, earliest: float) -> float:
        """Send one transfer, at `earliest` or later, and return the time at which it begins."""
        begins = self.free if self.free > earliest else earliest
        self.free = begins + self.seconds
        self.busy += self.seconds
        return begins


class Node:
    """A node with workers: its links to other nodes, or the memory of the store's node."""

    __slots__ = ("is_store", "receiving", "sending")

    def __init__(self, costs: Costs, is_store: bool) -> None:
        """Make the node. `is_store`: its pushes and pulls are copies in memory."""
        self.is_store = is_store
        self.sending = Link(costs.push_bytes, costs.node_bytes_per_second)
        self.receiving = Link(costs.pull_bytes, costs.node_bytes_per_second)


@dataclass(frozen=True)
class Costs:
    """Seconds and bytes of one configuration, for a model of given size."""

    num_workers: int
    push_bytes: float
    pull_bytes: float
    memory_push_seconds: float
    memory_pull_seconds: float
    memory_pull_latency: float
    push_latency: float
    pull_latency: float
    store_bytes_per_second: float
    """Speed of all shards together."""
    node_bytes_per_second: float
    arrival_seconds: float
    update_seconds: float
    allreduce_seconds: float

    def nodes(self, config: RunConfig) -> tuple[list[Node], list[int]]:
        """Return the nodes with workers, and the number of each worker's node."""
        simulation = config.simulation
        per_node = simulation.workers_per_node
        if per_node is None:
            return [Node(self, is_store=True)], [0] * self.num_workers
        node_of = [worker // per_node for worker in range(self.num_workers)]
        nodes = [Node(self, number == 0 and simulation.store_node_trains) for number in range(node_of[-1] + 1)]
        return nodes, node_of

    def node_workers(self, config: RunConfig) -> list[list[int]]:
        """Return the workers of each node."""
        node_of = self.nodes(config)[1]
        return [[worker for worker, node in enumerate(node_of) if node == number] for number in range(node_of[-1] + 1)]


def num_workers(config: RunConfig) -> int:
    """Return the number of workers of the simulated cluster."""
    return 1 if config.strategy.is_single else config.simulation.workers


def costs(config: RunConfig, num_parameters: int) -> Costs:
    """Return the costs of `config` for a model of `num_parameters`."""
    simulation, shards, workers = config.simulation, config.store.shards, num_workers(config)
    memory, network = simulation.memory, simulation.network
    push = slot_format(num_parameters, slice(0, num_parameters), config.push).sent_bytes
    pull = 4 * num_parameters
    update, arrival = simulation.update_seconds, simulation.arrival_seconds
    if update is None:
        update = _UPDATE_BYTES * num_parameters / memory.bytes_per_second
    if arrival is None:
        arrival = (push + _SUM_BYTES * num_parameters) / memory.bytes_per_second
    is_synchronous = not config.strategy.is_async
    return Costs(
        num_workers=workers,
        push_bytes=push,
        pull_bytes=pull,
        memory_push_seconds=memory.push_latency_seconds + push / memory.bytes_per_second,
        memory_pull_seconds=memory.pull_latency_seconds + pull / memory.bytes_per_second,
        memory_pull_latency=memory.pull_latency_seconds,
        push_latency=network.push_latency_seconds,
        pull_latency=network.pull_latency_seconds,
        store_bytes_per_second=shards * network.bytes_per_second,
        node_bytes_per_second=network.node_bytes_per_second or network.bytes_per_second,
        arrival_seconds=arrival / shards,
        update_seconds=update / (1 if is_synchronous else shards),
        allreduce_seconds=_allreduce_seconds(config, workers, pull),
    )


def _allreduce_seconds(config: RunConfig, workers: int, num_bytes: float) -> float:
    """Return the seconds of a sum over all workers: at the speed of links between nodes, at that of memory within one
    node."""
    simulation = config.simulation
    is_one_node = simulation.workers_per_node is None or workers <= simulation.workers_per_node
    link = simulation.memory if is_one_node else simulation.network
    latency, transfer = link.push_latency_seconds, num_bytes / link.bytes_per_second
    if simulation.allreduce == "tree":
        return 2 * math.ceil(math.log2(workers)) * (latency + transfer)
    return 2 * (workers - 1) * (latency + transfer / workers)
