"""The store of a simulation without gradients, for planning: it makes the store's decisions and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hvd_async.config import StrategyConfig
from hvd_async.simulation.workers import Sender
from hvd_async.store.ledger import BatchLedger
from hvd_async.store.schedule import arrivals_needed, is_synchronous
from hvd_async.store.staleness import is_refused, must_not_miss


@dataclass(frozen=True)
class Decision:
    """An arrival and its outcome: the version that contains it, or None if it was refused."""

    seconds: float
    worker: int
    batch: int
    base_version: int
    version: int | None


@dataclass(frozen=True)
class BatchWeights:
    """Weights of batches: those in `each`, repeated without end."""

    each: Sequence[float]

    def of(self, batch: int) -> float:
        """Return the weight of one batch."""
        return self.each[batch % len(self.each)]

    @property
    def mean(self) -> float:
        """Mean weight of a batch."""
        return sum(self.each) / len(self.each)


class CountingStore:
    """`SimulatedStore` that decides as `ParameterStore` does when all gradients are finite.

    Attributes:
        version: newest version.
        staleness: applied arrivals by their staleness.
        num_applied, num_refused: numbers of applied and of refused arrivals.
        fates: the outcome of every arrival, if `record` is given.
    """

    def __init__(
        self,
        strategy: StrategyConfig,
        num_workers: int,
        weights: BatchWeights,
        last_version: int | None = None,
        record: Callable[[], float] | None = None,
        watch: Callable[[int], bool] | None = None,
    ) -> None:
        """Start with version 0. `record`: returns the time, if outcomes are to be recorded. `watch` is called at every
        version with the number of applied arrivals and returns whether the run ends."""
        self.version = 0
        self.num_applied = 0
        self._watch = watch
        self._is_over = False
        self.staleness: Counter[int] = Counter()
        self.num_refused = 0
        self.decisions: list[Decision] = []
        self.weight = weights.of
        self._num_micro_batches = strategy.num_micro_batches
        self._strategy = strategy
        self._num_active = num_workers
        self._last_version = last_version
        self._record = record
        self._bases: list[int] = []  # base versions of the pending arrivals
        self._pending: list[tuple[int, int, int]] = []  # worker, batch, base version, if outcomes are recorded
        self._made: list[tuple[int, int, int]] = []
        self._may_be_synchronous = strategy.may_be_synchronous
        self._waits, self._drops = strategy.waits_for_stragglers, strategy.drops_stale
        self._ledger = BatchLedger()
        # N, if it is constant.
        wanted = strategy.arrivals_per_update
        self._fixed = wanted if isinstance(wanted, int) and not self._may_be_synchronous else None

    @property
    def num_pending(self) -> int:
        return len(self._bases)

    @property
    def watermark(self) -> int:
        return self._ledger.watermark

    def num_micro_batches(self, batch: int) -> int:
        return self._num_micro_batches

    def provisional(self, version: int) -> int:
        """Return the number of pending arrivals, which identifies the provisional parameters."""
        is_made = version == self.version > 0 and not is_synchronous(self._strategy, version)
        return len(self._bases) if is_made else 0

    def admits(self, sender: Sender) -> bool:
        if self._may_be_synchronous and is_synchronous(self._strategy, self.version):
            if sender.first_batch != self._ledger.watermark:
                return False
        return not self.is_complete() or self._would_be_too_stale(sender.oldest_base)

    def accept(self, sender: Sender) -> bool:
        if self._may_be_synchronous:
            for worker in sender.contributors:
                self._ledger.record(worker.out_batch)
        if self._drops and is_refused(self._strategy, self.version - sender.oldest_base):
            self.refuse(sender)
            return False
        for worker in sender.contributors:
            self._bases.append(worker.out_base)
        if self._record is not None:
            self._pending += _described(sender)
        return True

    def refuse(self, sender: Sender) -> None:
        self.num_refused += len(sender.contributors)
        if self._record is not None:
            self._decide(_described(sender), None)

    def is_complete(self) -> bool:
        num_pending = len(self._bases)
        if self._fixed is not None:
            return num_pending >= self._fixed
        return num_pending > 0 and num_pending >= arrivals_needed(self._strategy, self.version, self._num_active)

    def advance(self, oldest_under_way: int | None) -> bool:
        if oldest_under_way is not None and self._would_be_too_stale(oldest_under_way):
            return False
        self._apply()
        return True

    def leave(self, worker: int) -> None:
        self._num_active -= 1

    def finish(self) -> bool:
        if self._bases and self._strategy.pending == "apply":
            self._apply()
            return True
        self.num_refused += len(self._bases)
        self._bases = []
        self._decide(self._pending, None)
        self._pending = []
        return False

    def published(self, oldest_under_way: int | None) -> None:
        if self._record is not None:
            self._decide(self._made, self.version)
            self._made = []
        if self._watch is not None and self._watch(self.num_applied):
            self._is_over = True

    def is_over(self) -> bool:
        return self._is_over or (self._last_version is not None and self.version >= self._last_version)

    def _apply(self) -> None:
        version, staleness = self.version, self.staleness
        for base in self._bases:
            staleness[version - base] += 1
        self.num_applied += len(self._bases)
        self.version = version + 1
        self._bases = []
        self._made, self._pending = self._pending, []

    def _would_be_too_stale(self, base_version: int) -> bool:
        return self._waits and must_not_miss(self._strategy, self.version + 1 - base_version)

    def _decide(self, arrivals: Sequence[tuple[int, int, int]], version: int | None) -> None:
        if self._record is not None:
            self.decisions += [Decision(self._record(), *arrival, version) for arrival in arrivals]


def _described(sender: Sender) -> list[tuple[int, int, int]]:
    return [(worker.number, worker.out_batch, worker.out_base) for worker in sender.contributors]
