"""The interface of a block of memory, equal for every way to reach it: bytes, control words and doorbells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from hvd_async.transport.block import BlockT_co
from hvd_async.transport.pulse import Pulse, Rhythm


class Window(Protocol[BlockT_co]):
    """Loads, stores and copies on a block, as one rank sees it. Several threads of the rank may use it at once.

    Contract, which one conformance suite checks for every implementation:

    - Each call is complete when it returns, `put` and `store_words` with the `flush` that follows. No call is collective. Only
      `wait` may wait for the target's own computation longer than its progress thread takes.
    - A rank that sees the value of a `store` or `fetch_add` also sees every `store` that the same thread made before it, and
      every `put` and `store_words` that the thread flushed before it, on this block or another (release and acquire). The
      protocol depends on this.
    - `put` and `get` move contiguous tensors on the CPU (some windows: on any device), of any dtype. The tensor of a `get` is
      the caller's again on return, that of a `put` after the `flush`. They promise nothing about concurrent writers: the
      protocol does.
    """

    name: str  # for messages: "shared memory", "MPI", ...
    has_bells: bool  # whether `ring` wakes this rank's `wait`; otherwise `wait` only sleeps

    is_remote: bool  # whether writes travel over a network, and may arrive after the death of the process that made them

    @property
    def layout(self) -> BlockT_co:
        """Layout of the block."""

    def load(self, word: int) -> int:
        """Return the value of control word number `word`, read atomically."""

    def store(self, word: int, value: int) -> None:
        """Set a control word atomically. Only its one writer calls this."""

    def store_words(self, first: int, values: Sequence[int]) -> None:
        """Begin to set control words `first`, `first` + 1, ..., in any order; after a `flush`, a `store` announces them."""

    def load_words(self, first: int, count: int) -> list[int]:
        """Return the values of `count` control words from `first` on, which a `store` seen before has announced."""

    def fetch_add(self, word: int, amount: int) -> int:
        """Add to a control word atomically; return the previous value. A word changed by this call is never changed by
        `store`."""

    def compare_swap(self, word: int, expected: int, value: int) -> int:
        """Set a control word to `value` if it is `expected`, atomically; return the previous value. Such a word is never
        changed by `store`."""

    def beat(self, word: int, rhythm: Rhythm) -> Pulse:
        """Start a thread that counts a control word up, which nobody else writes from now on."""

    def put(self, offset: int, source: torch.Tensor) -> None:
        """Begin to copy `source` to byte `offset` of the block."""

    def flush(self) -> None:
        """Wait until every `put` and `store_words` of this thread is complete."""

    def get(self, offset: int, target: torch.Tensor) -> None:
        """Copy from byte `offset` of the block into `target`."""

    def mapped(self, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Return [count] elements at byte `offset`: the memory itself if this rank has it mapped, else None."""

    def ring(self, bell: int) -> None:
        """Wake those who wait for the doorbell, control word number `bell`. May do nothing, since waits are limited."""

    def heard(self, bell: int) -> int:
        """Return the doorbell's count, for a later `wait`. Read it before looking at what the doorbell announces."""

    def wait(self, bell: int, heard: int, seconds: float) -> None:
        """Sleep about `seconds`; less if there are doorbells and this one has been rung since `heard` was read."""


class OwnerWindow(Window[BlockT_co], Protocol[BlockT_co]):
    """The block of its owner: mapped, so that parts of it are tensors."""

    def vector(self, offset: int, count: int | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return [count], or [num_elements]: the memory at byte `offset` with which the owner computes, possibly on a
        GPU. Ranks that read through a copy see changes after `bring_out`, all others at once."""

    def bring_in(self, offset: int, num_bytes: int) -> None:
        """Make `vector` show what another rank wrote at byte `offset`, once it is announced. Called once for each write."""

    def bring_out(self, offset: int, num_bytes: int) -> None:
        """Make what `vector` holds at byte `offset` readable by every rank; complete on return."""

    def dead_ranks(self) -> frozenset[int]:
        """Return the ranks on other hosts of which MPI says that they are dead, where the others go on."""
