"""Workers without which the store goes on."""

from __future__ import annotations

from collections.abc import Mapping, Set

from hvd_async.errors import PeerError
from hvd_async.store.serve.liveness import WorkerWatch
from hvd_async.store.wire.layout import SlotWord, StoreMemory, Word, WorkerState, WorkerWord
from hvd_async.store.wire.stop import read_stop


class LostWorkers:
    """The workers that have died or failed, as the store's server learns of them. Used by one thread."""

    def __init__(
        self,
        memory: StoreMemory,
        watch: WorkerWatch,
        least_workers: int | None,
        joined: Set[int] = frozenset(),
        *,
        is_only_store: bool = False,
    ) -> None:
        """The run goes on while at least `least_workers` are left; None: it ends with the first that dies. `joined` has at each
        moment the workers that joined later, without which it always goes on: no launcher waits for them. `is_only_store`:
        whether no other rank has a part of the store."""
        self.dead: dict[int, str] = {}
        """Why each worker counts as dead that does."""
        self._memory = memory
        self._watch = watch
        self._least_workers = least_workers
        self._joined = joined
        self._is_only_store = is_only_store
        self._numbers: dict[int, int] = {}  # of those that are dismissed, counted from 1
        self._num_ranks = 0
        self._dismissed: set[int] = set()
        self.is_any_dismissed = False

    def look(self, present: Set[int]) -> None:
        """Look for more dead among the workers that are `present`. Raises `PeerError` if the run needs them to go on.

        It needs none at its end; those that have left by then are well, and count. Calls shortly after another do nothing.
        """
        if not self._watch.is_due():
            return
        living = present - self.dead.keys()
        failed = {worker: _failed(worker) for worker in sorted(living) if self._has_failed(worker)}
        found = self._watch.find_dead(living) | failed
        self.dead |= found
        num_left: int | None = None
        if self._least_workers is None:
            fatal, hint = {worker: found[worker] for worker in sorted(found.keys() - self._joined)}, ""
        else:
            num_left = sum(map(self._counts, range(self._memory.layout.num_workers)))
            is_enough = num_left >= self._least_workers or not self.dead.keys() & present or self._is_at_end()
            fatal = {} if is_enough else self.dead
            left = f"{num_left} worker{' is' if num_left == 1 else 's are'} left"
            hint = f": {left}, expected at least {self._least_workers} (strategy.min_workers)"
        if fatal:
            # The workers end by a signal; this status is that of the run, whichever way mpirun ends.
            status = 1 if all(reason == _failed(worker) for worker, reason in fatal.items()) else None
            text = f"{_in_words(fatal)}{hint}; the store's state is saved"
            is_none_left = self._is_only_store and num_left == 0 and all(map(self._ends_itself, self.dead))
            raise PeerError(text, is_none_left=is_none_left, exit_status=status)

    def dismiss(self, worker: int) -> None:
        """End the process of `worker`, which is dead or counts so, if it lives here; elsewhere it is told before it pushes. Done
        once for each worker."""
        if worker in self._dismissed:
            return
        self._dismissed.add(worker)
        self._memory.store(self._memory.layout.worker_word(worker, WorkerWord.DISMISSED), 1)
        self._watch.end(worker)
        self.is_any_dismissed = True
        if worker not in self._joined:
            self._num_ranks += 1
            self._numbers[worker] = self._num_ranks
            self._memory.store(self._memory.layout.worker_word(worker, WorkerWord.RANK_LOST), 1)
            self._memory.store(Word.NUM_LOST, self._num_ranks)  # after DISMISSED: who reads this looks there

    def is_settled(self, worker: int, slot: int) -> bool:
        """Whether the workers that share `slot` with `worker`, which is dismissed, push nothing of it any more."""
        return self._memory.load(self._memory.layout.slot_word(slot, SlotWord.SETTLED)) >= self._numbers[worker]

    def replace(self, worker: int) -> None:
        """Note that another process, which has joined, is `worker` from now on."""
        self.dead.pop(worker, None)
        self._dismissed.discard(worker)
        self._watch.begin(worker)

    def _is_at_end(self) -> bool:
        return self._memory.load(Word.NOTHING_OPEN) != 0 or read_stop(self._memory) is not None

    def _counts(self, worker: int) -> bool:
        """Whether `worker` is alive, or has left; not if its place is vacant."""
        state = self._state(worker)
        is_vacant = state < 0 or state in (WorkerState.VACANT, WorkerState.JOINING_AFAR, WorkerState.FAILED)
        return worker not in self.dead and not is_vacant

    def _ends_itself(self, worker: int) -> bool:
        """Whether the process of `worker`, which counts as dead, is gone or about to go: not if it is stopped or hangs."""
        return self._has_failed(worker) or self._watch.is_gone(worker)

    def _has_failed(self, worker: int) -> bool:
        return self._state(worker) == WorkerState.FAILED

    def _state(self, worker: int) -> int:
        return self._memory.load(self._memory.layout.worker_word(worker, WorkerWord.STATE))


def _failed(worker: int) -> str:
    return f"worker {worker} failed; its message says why"


def _in_words(dead: Mapping[int, str]) -> str:
    """Return why the `dead` workers count as such; those that failed together, as after a mistake in a script."""
    failed = [str(worker) for worker, reason in dead.items() if reason == _failed(worker)]
    if len(failed) < 2:
        return "; ".join(dead.values())
    others = [reason for worker, reason in dead.items() if reason != _failed(worker)]
    return "; ".join([*others, f"workers {', '.join(failed)} failed; their messages say why"])
