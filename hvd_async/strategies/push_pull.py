"""Push and pull of a worker of the asynchronous strategy: by itself, or together with its node."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from hvd_async.config import StrategyConfig
from hvd_async.store.arrival import Arrival
from hvd_async.store.schedule import is_synchronous
from hvd_async.store.serve.client import StoreClient
from hvd_async.store.serve.node_aggregation import NodeAggregator
from hvd_async.store.serve.readings import Base
from hvd_async.store.wire.layout import IDLE, WorkerState
from hvd_async.store.wire.stop import StopNotice


@dataclass(frozen=True)
class Took:
    """Seconds of a push and pull: writing the gradient, waiting for the store or for others, reading parameters."""

    push_seconds: float = 0.0
    wait_seconds: float = 0.0
    pull_seconds: float = 0.0


class PushPull(Protocol):
    """Access of one worker to the store. Used by one thread; every method may wait for the store.

    Vectors are on the CPU, or on the worker's GPU if its window accepts them there.
    """

    took: Took
    """Times of the last `push_pull`."""

    def start(self, parameters: torch.Tensor) -> Base:
        """Begin to compute, or resume after `pause`: pull into `parameters` ([size], float32), and return their base.

        The previous contents of `parameters` do not matter.
        """

    def push_pull(self, gradient: torch.Tensor, arrival: Arrival, parameters: torch.Tensor, computing: int = IDLE) -> Base:
        """Push `gradient` ([size], float32), wait as the strategy requires, pull into `parameters`, and return their base.

        `parameters` must be unchanged since the last `start` or `push_pull`. `computing`: base version of the gradient that
        this worker computes meanwhile.
        """

    def pull_newer(self, parameters: torch.Tensor, oldest: int) -> Base:
        """Pull into `parameters`, unchanged since the last pull, in the middle of a step, and return their base. `oldest`:
        version on which the step was begun, which stays announced. Waits for no one."""

    def pause(self) -> None:
        """Announce that this worker pushes nothing for a while, so that no one waits for its gradient."""

    def wait_for_returned(self, stop_requested: Callable[[], StopNotice | None]) -> int | None:
        """Push nothing, and wait for a batch that another worker returns: see `StoreClient.wait_for_returned`. `start` before
        computing it."""

    def stop(self) -> None:
        """Announce that this worker pushes no more."""


class DirectPushPull:
    """Access of a worker with a slot of its own."""

    def __init__(self, client: StoreClient, strategy: StrategyConfig) -> None:
        """`client`, which has joined the store, stays the caller's."""
        self.took = Took()
        self._client = client
        self._strategy = strategy

    def start(self, parameters: torch.Tensor) -> Base:
        self._client.pull(parameters)
        return self._client.base

    def push_pull(self, gradient: torch.Tensor, arrival: Arrival, parameters: torch.Tensor, computing: int = IDLE) -> Base:
        self._client.keep_announced(computing)
        started = time.monotonic()
        self._client.push(gradient, [arrival])
        pushed = time.monotonic()
        wait(self._client, self._strategy)
        waited = time.monotonic()
        self._client.pull(parameters)
        self.took = Took(pushed - started, waited - pushed, time.monotonic() - waited)
        return self._client.base

    def pull_newer(self, parameters: torch.Tensor, oldest: int) -> Base:
        self._client.keep_announced(oldest)
        self._client.pull(parameters)
        return self._client.base

    def pause(self) -> None:
        self._client.idle()

    def wait_for_returned(self, stop_requested: Callable[[], StopNotice | None]) -> int | None:
        self._client.idle()
        return self._client.wait_for_returned(stop_requested)

    def stop(self) -> None:
        self._client.leave()


class NodePushPull:
    """Access of a worker that pushes and pulls together with the other workers of its node."""

    def __init__(self, node: NodeAggregator, client: StoreClient, strategy: StrategyConfig) -> None:
        """`client`, which has joined the store, and `node` stay the caller's."""
        self.took = Took()
        self._node = node
        self._client = client
        self._strategy = strategy

    def start(self, parameters: torch.Tensor) -> Base:
        return self._node.start(parameters)

    def push_pull(self, gradient: torch.Tensor, arrival: Arrival, parameters: torch.Tensor, computing: int = IDLE) -> Base:
        started = time.monotonic()
        base = self._node.push_pull(gradient, arrival, parameters, computing)
        self._client.note_pushed(arrival.batch)
        # Counted as waiting, which most of it is: push, wait and pull of a node cannot be told apart here.
        self.took = Took(wait_seconds=time.monotonic() - started)
        return base

    def pull_newer(self, parameters: torch.Tensor, oldest: int) -> Base:
        """Not of a node: the configuration refuses `push.node_sum` with micro-batches."""
        raise AssertionError("unreachable")

    def pause(self) -> None:
        """Let the node continue without this worker; not in lock-step, where the update waits for this worker in any
        case."""
        if not is_synchronous(self._strategy, self._node.version):
            self._node.stop(WorkerState.AWAY)

    def wait_for_returned(self, stop_requested: Callable[[], StopNotice | None]) -> int | None:
        return self._node.wait_for_returned(stop_requested)

    def stop(self) -> None:
        self._node.stop(WorkerState.LEFT)
        self._client.leave(is_slot_shared=True)


def wait(client: StoreClient, strategy: StrategyConfig) -> None:
    """Wait between a push and the next pull, as `strategy` requires."""
    if client.version >= 0 and is_synchronous(strategy, client.version):
        client.wait_released()
    else:
        # A worker computes on parameters that contain its own gradient: with one worker and N = 1 nothing is ever stale.
        client.wait_drained()
