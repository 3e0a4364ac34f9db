"""Workers of a simulated run, and the senders that push and pull for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from hvd_async.simulation.costs import Node

NONE = -1
"""Stands for no batch or no version."""


class Sender:
    """One end of pushes and pulls: a worker for itself, or the workers of a node together."""

    __slots__ = (
        "contributors",
        "first_batch",
        "is_released",
        "is_waiting",
        "members",
        "node",
        "number",
        "oldest_base",
        "provisional",
        "pulled",
        "pulled_provisional",
        "reached",
        "sent",
        "version",
        "waited",
    )

    def __init__(self, number: int, node: Node) -> None:
        """Make a sender without members. `number`: its number among the senders."""
        self.number = number
        self.node = node
        self.members: list[VirtualWorker] = []
        self.contributors: list[VirtualWorker] = []
        """Workers whose gradients are in the push that is being gathered or under way."""
        self.version = self.pulled = self.first_batch = self.oldest_base = NONE
        """Version pulled last, version being pulled; first batch and oldest base version of the push."""
        self.provisional = self.pulled_provisional = 0
        """Number of the provisional parameters pulled last, or being pulled, by `SimulatedStore`; 0: those of the
        version."""
        self.sent = self.reached = self.waited = 0.0
        """Times of the last push: begun, arrived in the store's memory, wait over."""
        self.is_released = True
        self.is_waiting = False


class VirtualWorker(Sender):
    """One worker: the step that it computes, and the step whose gradient is under way or in the store's memory.

    A worker is its own sender, unless the workers of a node push together.
    """

    __slots__ = (
        "ahead",
        "base",
        "base_provisional",
        "batch",
        "brought",
        "brought_provisional",
        "exchanging",
        "is_blocked",
        "later",
        "num_micro_batches",
        "out_base",
        "out_batch",
        "out_later",
        "out_provisional",
        "out_seconds",
        "out_took",
        "provisional",
        "pulled_between",
        "seconds",
        "sender",
        "steps",
        "took",
        "took_next",
        "version",
        "version_provisional",
        "waits",
    )

    def __init__(self, number: int, node: Node, sender: Sender | None) -> None:
        """Make a worker. `sender`: the sender that pushes for it; None: itself."""
        super().__init__(number, node)
        self.sender = self if sender is None else sender
        self.steps = 0
        self.batch = self.base = self.out_batch = self.out_base = self.version = self.brought = NONE
        self.provisional = self.base_provisional = self.out_provisional = self.version_provisional = (
            self.brought_provisional
        ) = 0
        self.seconds = self.out_seconds = 0.0
        self.num_micro_batches = 1
        self.pulled_between = 0.0
        """Seconds of pulls between the micro-batches of the step."""
        self.later: list[tuple[int, int]] = []
        self.out_later: list[tuple[int, int]] = []
        """Version, and number of the provisional parameters, of each micro-batch after the first."""
        self.took = self.took_next = self.out_took = (0.0, 0.0, 0.0)
        # With overlap: batches claimed ahead, and the state of the push and pull under way.
        self.ahead: deque[int] = deque()
        self.exchanging = False
        self.is_blocked = False
        self.waits = True


def make_workers(
    nodes: Sequence[Node], node_of: Sequence[int], aggregates_nodes: bool
) -> tuple[list[Sender], list[VirtualWorker]]:
    """Return the senders, and all workers."""
    together = [Sender(number, node) for number, node in enumerate(nodes)] if aggregates_nodes else []
    workers = [
        VirtualWorker(number, nodes[node], together[node] if aggregates_nodes else None)
        for number, node in enumerate(node_of)
    ]
    for worker in workers:
        worker.sender.members.append(worker)
    return together or list(workers), workers
