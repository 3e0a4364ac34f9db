"""The face of the store's block of memory, the same for every way to reach it."""

from __future__ import annotations

from typing import Protocol

import torch

from hvd_async.transport.layout import Layout


class Window(Protocol):
    """Loads, stores and copies on the store's block, as one thread of one rank sees it.

    Contract, which every implementation passes as one conformance suite:

    - Each call is complete when it returns; no call is collective; none waits for the target's own computation longer
      than its progress thread takes.
    - A rank that sees the value of a `store` or `fetch_add` also sees every `store` and `put` that the same writer made
      before it (release and acquire). This is what the protocol rests on.
    - `put` and `get` move whole vectors: source and target are contiguous float32 tensors on the CPU, which the caller
      owns again on return. They promise nothing about concurrent writers: the protocol does.
    """

    layout: Layout
    name: str  # for people: "shared memory", "RMA", ...

    def load(self, word: int) -> int:
        """The value of control word number `word`, atomically."""

    def store(self, word: int, value: int) -> None:
        """Set a control word atomically. Only its one writer calls this."""

    def fetch_add(self, word: int, amount: int) -> int:
        """Add to a control word atomically; the value before. Words changed so are never changed by `store`."""

    def put(self, offset: int, source: torch.Tensor) -> None:
        """Copy `source` [n] to byte `offset` of the block."""

    def get(self, offset: int, target: torch.Tensor) -> None:
        """Copy from byte `offset` of the block into `target` [n]."""


class StoreMemory(Window, Protocol):
    """The block as the store sees it: mapped, so that slots and buffers are tensors."""

    def vector(self, offset: int) -> torch.Tensor:
        """[num_elements], float32: the memory itself at byte `offset`; changes to it are seen by the workers."""
