"""The ranks that measure, the limits that figures are compared with, and the messages between a worker and the store's
rank.
"""

from __future__ import annotations

import queue
import threading

import pytest
import torch

from hvd_async.benchmarks.echo import EchoClient, EchoServer
from hvd_async.benchmarks.measurement import Spread
from hvd_async.benchmarks.transport import copy_figures, measuring_ranks


@pytest.mark.parametrize(
    ("is_near", "expected"),
    [
        ((True, True), [1]),
        ((True, True, True), [1]),
        ((True, False), [1]),
        ((True, True, False, False), [1, 2]),
        ((True, False, True), [2, 1]),
    ],
)
def test_the_first_local_and_the_first_remote_worker_measure(is_near: tuple[bool, ...], expected: list[int]) -> None:
    assert measuring_ranks(is_near) == expected


@pytest.mark.parametrize(("is_near", "limit", "bound"), [(True, "memcpy", 0.9), (False, "MPI", 0.85)])
def test_copies_are_compared_with_their_limits(is_near: bool, limit: str, bound: float) -> None:
    seconds = {name: Spread.of([value]) for name, value in {"push": 2.0, "pull": 4.0, "into": 1.0, "out of": 1.0}.items()}
    figures = copy_figures(25.0, is_near, seconds)
    assert [figure.ratio for figure in figures] == [0.5, 0.25]
    for figure in figures:
        assert figure.limit is not None and figure.limit.name.startswith(limit)
        assert figure.target is not None and figure.target.bound == bound


class Mailbox:
    """A `PointToPoint` between two threads of one process."""

    def __init__(self, rank: int, inboxes: list[queue.Queue[torch.Tensor]]) -> None:
        self.rank = rank
        self._inboxes = inboxes

    def send(self, rank: int, data: torch.Tensor) -> None:
        self._inboxes[rank].put(data.clone())

    def receive(self, rank: int, data: torch.Tensor) -> None:
        data.view(torch.uint8).copy_(self._inboxes[self.rank].get(timeout=30).view(torch.uint8))

    def waiting(self) -> int | None:
        return None if self._inboxes[self.rank].empty() else 1


def test_a_worker_is_answered_between_turns_of_the_store() -> None:
    inboxes: list[queue.Queue[torch.Tensor]] = [queue.Queue(), queue.Queue()]
    server = EchoServer(Mailbox(0, inboxes), most_bytes=400)  # type: ignore[arg-type]  # it has what is used
    client = EchoClient(Mailbox(1, inboxes))  # type: ignore[arg-type]
    is_over = threading.Event()

    def turns() -> None:
        while not is_over.is_set():
            assert server.between_turns() is None

    store = threading.Thread(target=turns, daemon=True)
    store.start()
    data = torch.arange(100, dtype=torch.float32)
    try:
        assert client.send_seconds(data) > 0
        assert client.receive_seconds(torch.zeros(100)) > 0
        assert client.echo_seconds(3) > 0
        assert client.idle_share(0.01) >= 0
    finally:
        is_over.set()
        store.join()
    assert all(inbox.empty() for inbox in inboxes)
