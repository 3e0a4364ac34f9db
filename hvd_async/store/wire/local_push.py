"""What of a gradient reaches the store, without a second process: the same casting, dropping and feedback as in a real push."""

from __future__ import annotations

import torch

from hvd_async.config import PushConfig
from hvd_async.store.gradient import Gradient
from hvd_async.store.wire.layout import Layout
from hvd_async.store.wire.slots import SlotWriter, read_slot, slot_format
from hvd_async.transport.inprocess import ThreadMemory
from hvd_async.vectors import arithmetic


def add(gradient: torch.Tensor, total: torch.Tensor, *, is_first: bool) -> None:
    """Add `gradient` to `total` ([size], float32 both), as teams and groups sum: left to right, each addition rounded. The first
    replaces what is in `total`."""
    before = [] if is_first else [arithmetic.Input(total)]
    arithmetic.sum_inputs([*before, arithmetic.Input(gradient)], total, 1.0)


class Pushes:
    """One slot that everybody writes to in turns: a gradient must be folded by the store before the next is sent.

    Shards change nothing of what arrives, so there is one here.
    """

    def __init__(self, size: int, push: PushConfig) -> None:
        """For gradients of `size` elements."""
        self._size = size
        self._push = push
        self._memory = ThreadMemory(Layout(size, num_workers=1, slot_format=slot_format(size, slice(0, size), push)))
        self._writers: dict[int, SlotWriter] = {}

    def send(self, sender: int, gradient: torch.Tensor) -> tuple[Gradient, int]:
        """What the store gets of `gradient` ([size], float32), and the bytes of it; valid until the next call.

        `sender`: whose error feedback is used and kept: a worker, or a node's workers together.
        """
        writer = self._writers.get(sender)
        if writer is None:
            writer = self._writers[sender] = SlotWriter([self._memory], [slice(0, self._size)], self._push)
        sent = writer.write(gradient, 0)
        return read_slot(self._memory, self._memory.layout, 0, sent.largest), sent.num_bytes

    def forget_errors(self) -> None:
        """As when the workers start anew: feedback is not in checkpoints."""
        self._writers.clear()
