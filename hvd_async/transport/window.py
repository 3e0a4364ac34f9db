"""The face of a block of memory, the same for every way to reach it: bytes, control words and bells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from hvd_async.transport.block import BlockT_co


class Window(Protocol[BlockT_co]):
    """Loads, stores and copies on a block, as one rank sees it. Its threads may use it at the same time.

    Contract, which every implementation passes as one conformance suite:

    - Each call is complete when it returns, `put` and `store_words` with the `flush` that follows; no call is collective; none
      but `wait` waits for the target's own computation longer than its progress thread takes.
    - A rank that sees the value of a `store` or `fetch_add` also sees every `store` that the same thread made before it, and
      every `put` and `store_words` that it flushed before, on this block or another (release and acquire). This is what the
      protocol rests on.
    - `put` and `get` move contiguous tensors on the CPU (some windows: on any device), of any dtype. A `get` tensor is the
      caller's again on return, a `put` one with the `flush`. They promise nothing about concurrent writers: the protocol does.
    """

    name: str  # for people: "shared memory", "RMA", ...
    has_bells: bool  # whether `ring` wakes this rank's `wait`; else it only sleeps

    @property
    def layout(self) -> BlockT_co:
        """What lies where in the block."""

    def load(self, word: int) -> int:
        """The value of control word number `word`, atomically."""

    def store(self, word: int, value: int) -> None:
        """Set a control word atomically. Only its one writer calls this."""

    def store_words(self, first: int, values: Sequence[int]) -> None:
        """Begin to set control words `first`, `first` + 1, ..., in any order; after a `flush`, a `store` says that they are."""

    def load_words(self, first: int, count: int) -> list[int]:
        """The values of `count` control words from `first` on, which a `store` seen before has announced."""

    def fetch_add(self, word: int, amount: int) -> int:
        """Add to a control word atomically; the value before. Words changed so are never changed by `store`."""

    def compare_swap(self, word: int, expected: int, value: int) -> int:
        """Set a control word to `value` if it is `expected`, atomically; the value before. As of `fetch_add`."""

    def put(self, offset: int, source: torch.Tensor) -> None:
        """Begin to copy `source` to byte `offset` of the block."""

    def flush(self) -> None:
        """Wait until every `put` and `store_words` of this thread is complete."""

    def get(self, offset: int, target: torch.Tensor) -> None:
        """Copy from byte `offset` of the block into `target`."""

    def mapped(self, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor | None:
        """[count]: the memory itself at byte `offset`, where this rank has it mapped; else None."""

    def ring(self, bell: int) -> None:
        """Wake those who wait for the bell, control word number `bell`. May do nothing: waits are limited."""

    def heard(self, bell: int) -> int:
        """The bell's count, for a later `wait`: to be read before looking at what the bell announces."""

    def wait(self, bell: int, heard: int, seconds: float) -> None:
        """Sleep about `seconds`; less, where there are bells, if this one has been rung since `heard` was read."""


class OwnerWindow(Window[BlockT_co], Protocol[BlockT_co]):
    """The block as its owner has it: mapped, so that parts of it are tensors."""

    def vector(self, offset: int, count: int | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """[count], or [num_elements]: the memory itself at byte `offset`, where the owner computes, which may be on a GPU.
        All ranks see changes to it, of what they read through a copy after `bring_out`."""

    def bring_in(self, offset: int, num_bytes: int) -> None:
        """Make `vector` show what another rank wrote at byte `offset`, once that is announced. Called once for each writing."""

    def bring_out(self, offset: int, num_bytes: int) -> None:
        """Make what `vector` holds at byte `offset` readable by every rank; it is on return."""
