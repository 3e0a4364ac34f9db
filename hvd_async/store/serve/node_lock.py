"""The lock of a node's workers, which outlives its owner: the others break it when the owner's process is gone."""

from __future__ import annotations

import os
from collections.abc import Callable

from hvd_async.errors import PeerError
from hvd_async.store.serve.liveness import RankProcess
from hvd_async.store.wire.layout import LifeWord, StoreMemory, Word, WorkerWord
from hvd_async.system.process_state import scope_of_ids

_OWNER = Word.CLAIMS  # 1 + the member that has the lock; 0: nobody


class NodeLock:
    """One member's access to the lock in the node's block. Used by one thread."""

    def __init__(self, block: StoreMemory, member: int) -> None:
        """Say which process `member` of the node is. The lock is free in a zeroed block."""
        self._block = block
        self._member = member
        layout = block.layout
        words = [layout.worker_word(each, WorkerWord.HEARTBEAT) for each in range(layout.num_workers)]
        block.store(words[member] + LifeWord.SCOPE, scope_of_ids())
        block.store(words[member] + LifeWord.PROCESS, os.getpid())
        self._processes = [RankProcess(block, word) for word in words]

    def take(self) -> bool:
        """Take the lock if it is free; return whether it was."""
        return self._take_from(0)

    def take_from_dead(self, is_dismissed: Callable[[int], bool]) -> bool:
        """Take the lock if it is free, or if its owner is dismissed and its process gone; return whether this member has it.

        A dismissed process may live for a moment, and complete what it does with the lock.
        """
        owner = self._block.load(_OWNER)
        if owner and not (is_dismissed(owner - 1) and self._is_gone(owner - 1)):
            return False
        return self._take_from(owner)

    def release(self) -> None:
        """Give the lock back, which this member has."""
        self._block.compare_swap(_OWNER, self._member + 1, 0)

    def _take_from(self, owner: int) -> bool:
        return self._block.compare_swap(_OWNER, owner, self._member + 1) == owner

    def _is_gone(self, member: int) -> bool:
        process = self._processes[member]
        state = process.state()
        if state is None:
            raise PeerError(
                "a worker died while it had the lock of its node's workers, whose process ids differ from those here, as in"
                " containers of their own: nobody can tell whether it still writes; run them in one, or without push.node_sum"
            )
        return state == "" or process.id == os.getpid()  # in this process a member is a thread
