"""Places of workers that are free, and those that joined a run under way."""

from __future__ import annotations

import time
from collections.abc import Callable

from hvd_async.store.serve.liveness import WorkerWatch
from hvd_async.store.wire.layout import MAX_HELD, StoreMemory, WorkerState, WorkerWord
from hvd_async.system.process_state import state_of

# Interval between looks at processes.
_LOOK_SECONDS = 0.2


class Vacancies:
    """The store's side of joining; `store.serve.joining` has the side of the worker. Used by one thread.

    A place is offered again when the process of its last worker is gone, so that nothing of that worker is written any more.
    """

    def __init__(self, memory: StoreMemory, watch: WorkerWatch, close: Callable[[int], bool]) -> None:
        """`watch` knows which processes are gone. `close(worker)` lets go of the slot of a worker; it returns whether that is
        possible yet."""
        self._memory = memory
        self._watch = watch
        self._close = close
        self._offered: set[int] = set()
        self._leaving: set[int] = set()
        self._looked = 0.0
        self.joined: set[int] = set()
        """Workers that have joined, and count."""

    @property
    def is_any(self) -> bool:
        """Whether a place is free, or is about to be."""
        return bool(self._offered or self._leaving)

    def offer(self, worker: int) -> None:
        """Let a process join as `worker`."""
        for held in range(MAX_HELD):
            self._set(worker, WorkerWord.HELD + held, 0)
        for word in (WorkerWord.READING, WorkerWord.DISMISSED, WorkerWord.WELCOME):
            self._set(worker, word, 0)
        self._offered.add(worker)
        self._set(worker, WorkerWord.STATE, WorkerState.VACANT)

    def take_joined(self) -> list[int]:
        """Return the workers that have joined since the last call. They count only after `welcome`."""
        new = [worker for worker in sorted(self._offered) if self._get(worker, WorkerWord.STATE) == WorkerState.ACTIVE]
        self._offered -= set(new)
        self.joined |= set(new)
        return new

    def welcome(self, worker: int) -> None:
        """Tell `worker`, which joined, that it counts now."""
        self._set(worker, WorkerWord.WELCOME, 1)

    def note_gone(self, worker: int) -> None:
        """Note that `worker` has left or is dismissed: its place is offered when its process is gone."""
        self.joined.discard(worker)
        self._leaving.add(worker)
        self._set(worker, WorkerWord.WELCOME, 0)  # one that leaves waits for this: else it might count as dead

    def look(self) -> None:
        """Offer places that have become free. Calls shortly after another do nothing."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        for worker in sorted(self._leaving):
            if self._watch.is_gone(worker) and self._close(worker):
                self._leaving.discard(worker)
                self.offer(worker)
        for worker in sorted(self._offered):
            state = self._get(worker, WorkerWord.STATE)
            is_afar = state == WorkerState.JOINING_AFAR
            if self._watch.has_guest_ended(worker) if is_afar else state < 0 and not state_of(-state):
                self.offer(worker)  # it went before it was active

    def _get(self, worker: int, word: int) -> int:
        return self._memory.load(self._memory.layout.worker_word(worker, word))

    def _set(self, worker: int, word: int, value: int) -> None:
        self._memory.store(self._memory.layout.worker_word(worker, word), value)
