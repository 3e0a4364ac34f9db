"""Pushes within one process, with the casting, dropping and error feedback of a real push."""

from __future__ import annotations

import torch

from hvd_async.config import PushConfig
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.wire.layout import Layout, slot_format
from hvd_async.store.wire.slots import SlotWriter, read_slot
from hvd_async.transport.inprocess import ThreadMemory
from hvd_async.vectors import arithmetic


def add(gradient: torch.Tensor, total: torch.Tensor, *, is_first: bool) -> None:
    """Add `gradient` to `total` ([size], float32 both) as node aggregation and synchronous groups do: left to right, each
    addition rounded.

    `is_first`: replace the contents of `total`."""
    before = [] if is_first else [arithmetic.Input(total)]
    arithmetic.sum_inputs([*before, arithmetic.Input(gradient)], total, 1.0)


class Pushes:
    """One slot to which all senders write in turn: the store must have read a gradient before the next is sent.

    One shard suffices, since the number of shards does not change what arrives.
    """

    def __init__(self, size: int, push: PushConfig) -> None:
        """`size`: number of elements of a gradient."""
        self._size = size
        self._push = push
        self._memory = ThreadMemory(Layout(size, num_workers=1, slot_format=slot_format(size, slice(0, size), push)))
        self._writers: dict[int, SlotWriter] = {}

    def send(self, sender: int, gradient: torch.Tensor) -> tuple[Gradient, int]:
        """Return the gradient that the store receives for `gradient` ([size], float32, on any device), on the same device and
        valid until the next call, and its bytes.

        `sender`: owner of the error feedback that is used and updated: a worker, or the workers of a node together.
        """
        writer = self._writers.get(sender)
        if writer is None:
            writer = self._writers[sender] = SlotWriter([self._memory], [slice(0, self._size)], self._push)
        sent = writer.write(gradient.cpu(), 0)
        return read_slot(self._memory, self._memory.layout, 0, sent.largest).on(gradient.device), sent.num_bytes

    def forget_errors(self) -> None:
        """Drop all kept errors, as a restart of the workers does: error feedback is not in checkpoints."""
        self._writers.clear()
