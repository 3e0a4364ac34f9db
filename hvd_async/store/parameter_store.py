"""The parameter store as a pure state machine: arrivals in, updates out. No MPI, no clock, no files.

The server over MPI, the single process and the synchronous strategies drive the same object, so that all of them change the
parameters by the same code.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeAlias

import torch

from hvd_async.config import OptimizerConfig, StrategyConfig
from hvd_async.store import staleness
from hvd_async.store.arrival import Arrival, Refusal, Update, total_weight
from hvd_async.store.ledger import BatchLedger
from hvd_async.store.optimizers.factory import state_names
from hvd_async.store.optimizers.protocol import StepOrder
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.schedule import arrivals_needed, is_synchronous, rate_factor
from hvd_async.store.shards.shard import MAX_UNREAD, Shard, past_names
from hvd_async.vectors import arithmetic
from hvd_async.vectors.vector_map import VectorMap

RateFactor: TypeAlias = Callable[[int, float], float]
"""Returns the learning rate, as a share of the highest, from a version and the weight seen with it."""

# The square of a norm above this limit overflows: such a combined gradient counts as not finite.
_NORM_LIMIT = 1.8e19


class ShardOps(Protocol):
    """Arithmetic that a store directs, on one `Shard` or on several, each of which does the same on its own range."""

    @property
    def vector_map(self) -> VectorMap:
        """Groups of parameters and matrices of the whole vector."""

    @property
    def sum_place(self) -> int | None:
        """Which of the vectors for the pending sum holds it, on every shard; None: nothing was added to it."""

    @property
    def parameters(self) -> torch.Tensor:
        """Parameters of the newest version: [size], float32. With several shards, a copy."""

    def read(self, name: str) -> torch.Tensor:
        """Return the vector `name` (see `Shard.read`): [size], float32. With several shards, a copy."""

    def add(self, gradient: Gradient, divisor: float) -> None:
        """Add `gradient` / `divisor` to the pending sum, reading it as late as by the next step."""

    def compensate(self, gradient: Gradient, base_version: int, factor: float) -> None:
        """Add `gradient`, corrected for the drift since `base_version`, to the pending sum at once."""

    def flush(self) -> None:
        """Read all gradients that were added, so that their slots may be overwritten."""

    def norm(self, divisor: float) -> list[float]:
        """Flush; return the sums of squares of the pending sum / `divisor`, block by block."""

    def step(self, order: StepOrder) -> list[float]:
        """Make the next version; return the sums of squares of the gradient, block by block."""

    def provisional_step(self, order: StepOrder, number: int) -> None:
        """Make provisional vector `number`: the result of `order`, without a change of state."""

    def discard(self) -> None:
        """Drop the pending sum."""

    def forget(self, version: int) -> None:
        """Drop the base parameters of `version`."""

    def load(self, tensors: Mapping[str, torch.Tensor], version: int) -> None:
        """Restore `tensors`, as `read` returned them, at `version`. Raises `ValueError` if one is missing or has another
        size."""


class ParameterStore:
    """Accumulates arrivals and applies the optimizer to their sum (Aji & Heafield 2019 for the design of the update).

    The store decides; its `ShardOps` do the arithmetic. Conservation holds after every call: arrivals ever accepted or
    refused = arrivals in updates + pending + refused.

    Attributes:
        version: updates applied so far.
        weight: total weight of the arrivals in updates.
        applied: number of arrivals in updates, per worker.
        refused: number of arrivals in no update, per (worker, reason).
        rate_factor: the learning rate over time.
        about_to_step: called with each step before it is made.
        clip: the factor by which the gradient of the last update was clipped.
    """

    def __init__(
        self, vectors: ShardOps, size: int, optimizer: OptimizerConfig, strategy: StrategyConfig, num_workers: int
    ) -> None:
        """Take ownership of `vectors`, which have `size` elements and are at version 0."""
        self.version = 0
        self.weight: float = 0
        self.applied: Counter[int] = Counter()
        self.refused: Counter[tuple[int, Refusal]] = Counter()
        self.ledger = BatchLedger()
        self.rate_factor: RateFactor = functools.partial(rate_factor, optimizer.schedule)
        self.about_to_step: Callable[[StepOrder], None] = lambda order: None
        self.clip = 1.0
        self._vectors = vectors
        self._optimizer = optimizer
        self._strategy = strategy
        self._active = set(range(num_workers))
        self._returned: set[int] = set()
        self._size = size
        self._pending: list[Arrival] = []
        self._refused: list[tuple[Arrival, Refusal]] = []
        self._unread: list[int] = []
        self._bases = {0}  # versions whose parameters are kept for compensation
        self._largest = 0.0  # upper bound on the magnitude of the pending sum's elements

    @property
    def parameters(self) -> torch.Tensor:
        """Parameters of `version`: [size], float32. They stay unchanged at least until the next version but one."""
        return self._vectors.parameters

    @property
    def evaluated_parameters(self) -> torch.Tensor:
        """Parameters to evaluate and export: the moving average if configured, else `parameters`. [size], float32."""
        return self._vectors.read("average") if self._optimizer.average_decay else self.parameters

    @property
    def pending(self) -> tuple[Arrival, ...]:
        """Arrivals accumulated and not yet applied."""
        return tuple(self._pending)

    @property
    def num_active(self) -> int:
        """Workers that have not left."""
        return len(self._active)

    @property
    def num_needed(self) -> int:
        """N: arrivals that the next version needs."""
        return arrivals_needed(self._strategy, self.version, self.num_active)

    @property
    def needs_versions_under_way(self) -> bool:
        """Whether `advance` and `keep_base_versions` must know the base versions of gradients under way."""
        return staleness.needs_versions_under_way(self._strategy)

    @property
    def unread_slots(self) -> Sequence[int]:
        """Slots of accepted gradients that are still to be read (see `flush`); all other slots may be overwritten."""
        return self._unread

    @property
    def sum_place(self) -> int | None:
        """Which of the vectors for the pending sum holds it; None: nothing was added to it."""
        return self._vectors.sum_place

    def admits(self, arrivals: Sequence[Arrival]) -> bool:
        """Whether `arrivals`, pushed as one, may be accepted now; if not, they stay in their slot and are offered again.

        In lock-step, arrivals are taken in the order of their batches, so a run whose updates wait for every worker repeats
        to the last bit. (With N < workers, the version that a late worker pulls depends on its speed.) Under a bound that
        waits, an update may be complete but wait for a stale gradient under way: then only gradients that would be too stale
        afterwards may still join the update.
        """
        first = min(arrival.batch for arrival in arrivals)
        if is_synchronous(self._strategy, self.version) and first != self.ledger.first_open(self._returned):
            return False
        return not self.is_complete() or self._would_be_too_stale(min(arrival.base_version for arrival in arrivals))

    def accept(self, arrivals: Sequence[Arrival], gradient: Gradient) -> None:
        """Add `gradient` to the next update, or refuse its arrivals (see `take_refused`).

        `gradient` is the sum of the gradients of `arrivals`; if their base versions differ, the oldest counts for all. The
        store never changes `gradient`, but may read it as late as in the next update: it must stay unchanged while its slot
        is in `unread_slots`. Raises `ValueError` if one of the batches arrived before.
        """
        for arrival in arrivals:
            self.ledger.record(arrival.batch)
        base_version = min(arrival.base_version for arrival in arrivals)
        refusal = self._reason_to_refuse(base_version, gradient)
        if refusal is not None:
            self._count_refused(arrivals, refusal)
            return
        staleness_now = self.version - base_version
        factor = staleness.compensation(self._strategy, staleness_now, total_weight(arrivals))
        if factor is not None:
            self._vectors.compensate(gradient, base_version, factor)
            self._unread = []
            self._largest = math.inf  # unknown: the sum is measured before it is applied
        else:
            self._vectors.add(gradient, staleness.divisor(self._strategy, staleness_now))
            self._largest += gradient.largest
            self._unread.append(gradient.slot)
        self._pending.extend(arrivals)
        if len(self._unread) >= MAX_UNREAD:
            self.flush()

    def flush(self) -> None:
        """Read all gradients in `unread_slots`, so that their slots may be overwritten."""
        self._vectors.flush()
        self._unread = []

    def is_complete(self) -> bool:
        """Whether enough arrivals are pending for the next version; a bound on staleness may still delay the update."""
        return bool(self._pending) and len(self._pending) >= self.num_needed

    def advance(self, under_way: Collection[int] = ()) -> Update | None:
        """Make the next version if its arrivals are complete.

        `under_way`: base versions of gradients that active workers compute or have in their slots. A bound on staleness that
        waits delays the update while the update would make one of them too stale.
        """
        if not self.is_complete() or any(self._would_be_too_stale(base) for base in under_way):
            return None
        return self._apply()

    def makes_provisional(self) -> bool:
        """Whether there are provisional parameters now: arrivals are pending, and not in lock-step, where no one reads them.

        There are none on top of version 0, when the optimizer has no state yet, and none when a complete update is delayed:
        workers that come before the update is made wait for it.
        """
        if not self._strategy.has_provisional or not self._pending or self.version == 0 or self.is_complete():
            return False
        is_safe = math.sqrt(self._size) * self._largest / self._divisor() < _NORM_LIMIT
        return is_safe and not is_synchronous(self._strategy, self.version)

    def make_provisional(self, number: int) -> int:
        """Write into provisional vector `number` the next version as the pending arrivals alone would make it; return how
        many.

        A worker that pulls while k of N arrivals are pending will have its gradient applied after all N, so it computes on
        an estimate of that version (the field's weight prediction) rather than on a version that is about to be replaced.
        Clipping uses the factor of the last update, since the norm of a part is not the norm of the whole. Call only if
        `makes_provisional`.
        """
        factor = self.rate_factor(self.version + 1, total_weight(self._pending, self.weight))
        self._vectors.provisional_step(StepOrder(self.version + 1, factor, self._divisor(), self.clip), number)
        self._unread = []
        return len(self._pending)

    def refuse(self, arrivals: Sequence[Arrival], refusal: Refusal) -> None:
        """Count `arrivals` as refused without reading their gradient. A longer, resumed run computes their batches again."""
        self._count_refused(arrivals, refusal)

    def take_refused(self) -> list[tuple[Arrival, Refusal]]:
        """Return the arrivals refused since the last call, each exactly once, to be reported."""
        taken, self._refused = self._refused, []
        return taken

    def leave(self, worker: int) -> None:
        """Note that `worker` has no more data: N = `workers` counts one less from now on."""
        self._active.discard(worker)

    def come_back(self, worker: int) -> None:
        """Note that `worker`, which had left, computes again."""
        self._active.add(worker)

    def set_returned(self, batches: Collection[int]) -> None:
        """Note which batches a worker returned and no other has claimed since: the order of lock-step leaves them out."""
        self._returned = set(batches)

    def finish(self) -> Update | None:
        """Apply the pending arrivals at the end of the data, or drop and count them, as configured."""
        if self._pending and self._strategy.pending == "apply":
            return self._apply()
        self._refuse_pending(Refusal.DROPPED_PENDING)
        return None

    def keep_base_versions(self, under_way: Collection[int]) -> None:
        """Free the parameters of all versions except the newest and `under_way`: no gradient on any other version can arrive
        any more."""
        if not staleness.needs_base_parameters(self._strategy):
            return
        self._bases.add(self.version)
        for version in sorted(self._bases - {self.version, *under_way}):
            self._vectors.forget(version)
            self._bases.discard(version)

    def detach(self) -> None:
        """Copy all vectors to ordinary memory of this process, so that the memory that holds them now may be freed."""
        self.flush()
        names = ["parameters", *state_names(self._optimizer)]
        if not self._pending:
            names.remove("pending_sum")
        detached = Shard([torch.empty(self._size)], self._optimizer, vector_map=self._vectors.vector_map)
        detached.load({name: self._vectors.read(name) for name in names}, self.version)
        self._vectors = detached

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the complete state: tensors (possibly the live ones, not copies) and plain data.

        In lock-step, pending arrivals are left out and their batches count as not arrived: a resumed run computes these
        batches again on the same version, and equals an uninterrupted run.
        """
        keep_pending = bool(self._pending) and not is_synchronous(self._strategy, self.version)
        names = ["parameters", *past_names(self._strategy.delay, self.version), *state_names(self._optimizer)]
        if keep_pending:
            self.flush()
        else:
            names.remove("pending_sum")
        ledger = self.ledger if keep_pending else self.ledger.without([a.batch for a in self._pending])
        return {name: self._vectors.read(name) for name in names}, {
            "version": self.version,
            "weight": self.weight,
            "clip": self.clip,
            "pending": [asdict(arrival) for arrival in self._pending] if keep_pending else [],
            "applied": dict(self.applied),
            "refused": [[worker, reason.value, count] for (worker, reason), count in self.refused.items()],
            "ledger": ledger.to_json(),
        }

    def load_state(self, tensors: Mapping[str, torch.Tensor], data: Mapping[str, Any]) -> None:
        """Restore the result of `state`. Raises `ValueError` or `KeyError` if it does not fit this store."""
        self._vectors.load(tensors, data["version"])
        self.version, self.weight, self.clip = data["version"], data["weight"], data["clip"]
        self._bases = {self.version}
        self._pending = [Arrival.from_json(fields) for fields in data["pending"]]
        self._largest = math.inf if self._pending else 0.0
        self.applied = Counter({int(worker): count for worker, count in data["applied"].items()})
        self.refused = Counter({(worker, Refusal(reason)): count for worker, reason, count in data["refused"]})
        self.ledger = BatchLedger(**data["ledger"])

    def _would_be_too_stale(self, base_version: int) -> bool:
        """Whether a gradient on `base_version` must not miss the update that is complete now."""
        return staleness.must_not_miss(self._strategy, self.version + 1 - base_version)

    def _reason_to_refuse(self, base_version: int, gradient: Gradient) -> Refusal | None:
        if staleness.is_refused(self._strategy, self.version - base_version):
            return Refusal.TOO_STALE
        return None if math.isfinite(gradient.largest) else Refusal.NOT_FINITE

    def _apply(self) -> Update | None:
        weight, divisor = total_weight(self._pending, self.weight), self._divisor()
        clip = self._clipping(divisor)
        if clip is None:
            self._refuse_pending(Refusal.SUM_NOT_FINITE)
            return None
        factor = self.rate_factor(self.version + 1, weight)
        order = StepOrder(self.version + 1, factor, divisor, clip)
        self.about_to_step(order)
        norm = arithmetic.norm(self._vectors.step(order))
        self.clip = clip
        self.version += 1
        self.weight = weight
        update = Update(self.version, self.pending, self._optimizer.learning_rate * factor, norm)
        self.applied.update(arrival.worker for arrival in self._pending)
        self._forget_pending()
        return update

    def _divisor(self) -> float:
        return float(total_weight(self._pending) or 1.0) if self._strategy.reduction == "weight_mean" else 1.0

    def _clipping(self, divisor: float) -> float | None:
        """Return the factor for the combined gradient; None if its norm is not finite.

        The norm costs a pass of its own, so it is computed only where something depends on it.
        """
        may_overflow = not math.sqrt(self._size) * self._largest / divisor < _NORM_LIMIT
        if self._optimizer.clip_norm is None and not may_overflow:
            return 1.0
        norm = arithmetic.norm(self._vectors.norm(divisor))
        self._unread = []
        if not norm < _NORM_LIMIT:
            return None
        if self._optimizer.clip_norm is None or norm <= self._optimizer.clip_norm:
            return 1.0
        return self._optimizer.clip_norm / norm

    def _refuse_pending(self, refusal: Refusal) -> None:
        self._count_refused(self._pending, refusal)
        self._vectors.discard()
        self._forget_pending()

    def _forget_pending(self) -> None:
        self._pending, self._unread, self._largest = [], [], 0.0

    def _count_refused(self, arrivals: Sequence[Arrival], refusal: Refusal) -> None:
        self.refused.update((arrival.worker, refusal) for arrival in arrivals)
        self._refused += [(arrival, refusal) for arrival in arrivals]
