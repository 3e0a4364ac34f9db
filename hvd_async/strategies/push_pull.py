"""How a worker of the asynchronous strategy brings gradients to the store and parameters back: by itself or with its node."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import torch

from hvd_async.config import StrategyConfig
from hvd_async.store.arrival import Arrival
from hvd_async.store.schedule import is_synchronous
from hvd_async.store.serve.client import IDLE, Base, StoreClient
from hvd_async.store.serve.node_aggregation import NodeAggregator
from hvd_async.store.wire.layout import WorkerState


@dataclass(frozen=True)
class Took:
    """Seconds that an exchange took: writing the gradient, waiting for the store or for others, reading parameters."""

    push_seconds: float = 0.0
    wait_seconds: float = 0.0
    pull_seconds: float = 0.0


class PushPull(Protocol):
    """Brings one worker's gradients to the store. Used by one thread; everything may wait for the store.

    ShardOps are on the CPU, or on the worker's GPU where its window takes them there.
    """

    took: Took
    """The last `push_pull`."""

    def start(self, parameters: torch.Tensor) -> Base:
        """Begin to compute, or go on after `pause`: `parameters` ([size], float32) become new ones; which they are.

        What they held is not needed.
        """

    def push_pull(self, gradient: torch.Tensor, arrival: Arrival, parameters: torch.Tensor, computing: int = IDLE) -> Base:
        """Push `gradient` ([size], float32), wait as the strategy asks, and pull into `parameters`; which they are.

        `parameters` must be what the last `start` or `push_pull` left there. `computing`: the base version of the gradient that
        this worker computes meanwhile.
        """

    def pause(self) -> None:
        """No gradient comes for a while: nobody is to wait for one."""

    def stop(self) -> None:
        """No gradient comes any more."""


class DirectPushPull:
    """A worker with a slot of its own."""

    def __init__(self, client: StoreClient, strategy: StrategyConfig) -> None:
        """`client` has joined the store and stays the caller's."""
        self.took = Took()
        self._client = client
        self._strategy = strategy

    def start(self, parameters: torch.Tensor) -> Base:
        """See `PushPull.start`."""
        self._client.pull(parameters)
        return self._client.base

    def push_pull(self, gradient: torch.Tensor, arrival: Arrival, parameters: torch.Tensor, computing: int = IDLE) -> Base:
        """See `PushPull.push_pull`."""
        self._client.keep_announced(computing)
        started = time.monotonic()
        self._client.push(gradient, [arrival])
        pushed = time.monotonic()
        wait(self._client, self._strategy)
        waited = time.monotonic()
        self._client.pull(parameters)
        self.took = Took(pushed - started, waited - pushed, time.monotonic() - waited)
        return self._client.base

    def pause(self) -> None:
        """See `PushPull.pause`."""
        self._client.idle()

    def stop(self) -> None:
        """See `PushPull.stop`."""
        self._client.leave()


class NodePushPull:
    """A worker that pushes and pulls together with the others of its node."""

    def __init__(self, node: NodeAggregator, client: StoreClient, strategy: StrategyConfig) -> None:
        """`client` has joined the store; it and `node` stay the caller's."""
        self.took = Took()
        self._node = node
        self._client = client
        self._strategy = strategy

    def start(self, parameters: torch.Tensor) -> Base:
        """See `PushPull.start`."""
        return self._node.start(parameters)

    def push_pull(self, gradient: torch.Tensor, arrival: Arrival, parameters: torch.Tensor, computing: int = IDLE) -> Base:
        """See `PushPull.push_pull`."""
        started = time.monotonic()
        base = self._node.push_pull(gradient, arrival, parameters, computing)
        # Most of it is waiting for the others, and all is one step of the team.
        self.took = Took(wait_seconds=time.monotonic() - started)
        return base

    def pause(self) -> None:
        """See `PushPull.pause`. In lock-step the update waits for this worker in any case, so the team does too."""
        if not is_synchronous(self._strategy, self._node.version):
            self._node.go(WorkerState.AWAY)

    def stop(self) -> None:
        """See `PushPull.stop`."""
        self._node.go(WorkerState.LEFT)
        self._client.leave(slot_goes_on=True)


def wait(client: StoreClient, strategy: StrategyConfig) -> None:
    """After a push and before the pull: wait as `strategy` asks for."""
    if client.version >= 0 and is_synchronous(strategy, client.version):
        client.wait_released()
    else:
        # A worker computes on parameters that know its own gradient: with one worker and N = 1 nothing is ever stale.
        client.wait_drained()


def wait_and_pull(client: StoreClient, strategy: StrategyConfig, parameters: torch.Tensor) -> None:
    """As `wait`, and pull into `parameters`."""
    wait(client, strategy)
    client.pull(parameters)
