"""Who takes part in a simulated run: workers, and who pushes for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from hvd_async.simulation.costs import Node

NONE = -1
"""In place of a batch or a version: there is none."""


class Sender:
    """Who pushes and pulls: a worker for itself, or the workers of a node together."""

    __slots__ = (
        "contributors",
        "first_batch",
        "held",
        "held_provisional",
        "is_released",
        "is_waiting",
        "members",
        "node",
        "number",
        "oldest_base",
        "pulled",
        "pulled_provisional",
        "reached",
        "sent",
        "waited",
    )

    def __init__(self, number: int, node: Node) -> None:
        """`number`: among the senders."""
        self.number = number
        self.node = node
        self.members: list[VirtualWorker] = []
        self.contributors: list[VirtualWorker] = []
        """Of the push that is being gathered, or under way."""
        self.held = self.pulled = self.first_batch = self.oldest_base = NONE
        """Versions: that of the parameters here, that on its way; of the push: its first batch, its oldest base version."""
        self.held_provisional = self.pulled_provisional = 0
        """Which provisional parameters these are, by the number that `SimulatedStore` gave them; 0: those of the version."""
        self.sent = self.reached = self.waited = 0.0
        """When the last push began, was in the store's memory, and need not be waited for any more."""
        self.is_released = True
        self.is_waiting = False


class VirtualWorker(Sender):
    """One worker: the step that it computes, and the one whose gradient is on its way or in the store's memory.

    It is its own sender, unless the workers of a node push together.
    """

    __slots__ = (
        "ahead",
        "base",
        "batch",
        "brought",
        "brought_provisional",
        "exchanging",
        "is_blocked",
        "out_base",
        "out_batch",
        "out_provisional",
        "out_seconds",
        "out_took",
        "provisional",
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
        """`sender`: who pushes for it; None: it does so itself."""
        super().__init__(number, node)
        self.sender = self if sender is None else sender
        self.steps = 0
        self.batch = self.base = self.out_batch = self.out_base = self.version = self.brought = NONE
        self.provisional = self.out_provisional = self.version_provisional = self.brought_provisional = 0
        self.seconds = self.out_seconds = 0.0
        self.took = self.took_next = self.out_took = (0.0, 0.0, 0.0)
        # With overlap: batches claimed ahead, and what is under way meanwhile.
        self.ahead: deque[int] = deque()
        self.exchanging = False
        self.is_blocked = False
        self.waits = True


def make_workers(
    nodes: Sequence[Node], node_of: Sequence[int], aggregates_nodes: bool
) -> tuple[list[Sender], list[VirtualWorker]]:
    """Who pushes, and all workers."""
    together = [Sender(number, node) for number, node in enumerate(nodes)] if aggregates_nodes else []
    workers = [
        VirtualWorker(number, nodes[node], together[node] if aggregates_nodes else None)
        for number, node in enumerate(node_of)
    ]
    for worker in workers:
        worker.sender.members.append(worker)
    return together or list(workers), workers
