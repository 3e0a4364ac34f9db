"""The parameter store as a pure state machine: arrivals in, updates out. No MPI, no clock, no files.

The server over MPI, the single process and the synchronous strategies drive the same object, so that what they do to the
parameters is the same code.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hvd_async.config import OptimizerConfig, StrategyConfig
from hvd_async.store import staleness
from hvd_async.store.ledger import BatchLedger
from hvd_async.store.schedule import arrivals_needed, is_synchronous
from hvd_async.store.update import UpdateRule


@dataclass(frozen=True)
class Arrival:
    """A gradient that reached the store: the gradient of the *summed* loss over `tokens` target tokens of `batch`.

    `loss` is that sum in nats, `step_seconds` the worker's time from claim to push.
    """

    worker: int
    batch: int
    base_version: int
    tokens: int
    loss: float
    step_seconds: float = 0.0


class Refusal(str, enum.Enum):
    """Why an arrival is in no update."""

    NOT_FINITE = "not_finite"
    TOO_STALE = "too_stale"
    AFTER_THE_END = "after_the_end"
    DROPPED_PENDING = "dropped_pending"
    SUM_NOT_FINITE = "sum_not_finite"


@dataclass(frozen=True)
class Update:
    """One optimizer step: the version it made and the arrivals that are in it, in the order of their summation."""

    version: int
    arrivals: tuple[Arrival, ...]
    learning_rate: float
    gradient_norm: float

    @property
    def tokens(self) -> int:
        """Target tokens of all arrivals."""
        return sum(arrival.tokens for arrival in self.arrivals)

    @property
    def loss(self) -> float:
        """Mean training loss of the arrivals, in nats per target token."""
        return sum(arrival.loss for arrival in self.arrivals) / max(1, self.tokens)

    def staleness(self, arrival: Arrival) -> int:
        """Updates made between the version `arrival` was computed on and this one: 0 if it was fresh."""
        return self.version - 1 - arrival.base_version


class ParameterStore:
    """Accumulates arrivals and applies the optimizer to their combination (Aji & Heafield 2019; design of the update there).

    Conservation holds after every call: arrivals ever accepted or refused = arrivals in updates + pending + refused.

    Attributes:
        version: updates applied so far.
        tokens: target tokens of the arrivals in those updates.
        parameters: [size], float32; the store owns and changes it.
        applied: arrivals that are in updates, per worker.
        refused: arrivals that are in none, per (worker, reason).
    """

    def __init__(
        self,
        parameters: torch.Tensor,
        optimizer: OptimizerConfig,
        strategy: StrategyConfig,
        num_workers: int,
    ) -> None:
        """`parameters` ([size], float32) becomes the store's own."""
        self.version = 0
        self.tokens = 0
        self.applied: Counter[int] = Counter()
        self.refused: Counter[tuple[int, Refusal]] = Counter()
        self.ledger = BatchLedger()
        self._rule = UpdateRule(parameters, optimizer)
        self._strategy = strategy
        self._active = set(range(num_workers))
        self._sum = torch.zeros_like(parameters)
        self._pending: list[Arrival] = []
        self._refused: list[tuple[Arrival, Refusal]] = []
        self._base_parameters: dict[int, torch.Tensor] = {}
        self._remember_parameters()

    @property
    def parameters(self) -> torch.Tensor:
        """The parameters of `version`: [size], float32."""
        return self._rule.parameters

    @property
    def evaluated_parameters(self) -> torch.Tensor:
        """What is evaluated and exported: the moving average where there is one, else `parameters`. [size], float32."""
        return self._rule.parameters if self._rule.average is None else self._rule.average

    @property
    def pending(self) -> tuple[Arrival, ...]:
        """Arrivals accumulated and not yet applied."""
        return tuple(self._pending)

    @property
    def num_active(self) -> int:
        """Workers that have not left."""
        return len(self._active)

    def admits(self, arrival: Arrival) -> bool:
        """Whether `arrival` may be accepted now; if not, it stays in its slot and is offered again.

        In lock-step, arrivals are taken in the order of their batches, which makes such a run repeatable to the last bit
        where an update waits for every worker. (With N < workers, which version a late worker pulls is up to its speed.)
        Under a bound that waits, once an update is complete but held back for a stale gradient under way, only gradients
        that would be too stale afterwards may still join it.
        """
        if is_synchronous(self._strategy, self.version) and arrival.batch != self.ledger.watermark:
            return False
        return not self.is_complete() or self._would_be_too_stale(arrival.base_version)

    def accept(self, arrivals: Sequence[Arrival], gradient: torch.Tensor) -> None:
        """Add `gradient` to the next update, or refuse it: see `take_refused`.

        `gradient` ([size], float32) is the sum of the gradients of `arrivals`, all of one base version; it is left unchanged
        and not kept. Raises `ValueError` if one of the batches arrived before.
        """
        for arrival in arrivals:
            self.ledger.record(arrival.batch)
        refusal = self._reason_to_refuse(arrivals[0], gradient)
        if refusal is not None:
            self._count_refused(arrivals, refusal)
            return
        base_version = arrivals[0].base_version
        base = self._base_parameters.get(base_version)
        adjusted = staleness.adjust(
            gradient,
            self._strategy,
            staleness=self.version - base_version,
            tokens=max(1, sum(arrival.tokens for arrival in arrivals)),
            drift=None if base is None else self.parameters - base,
        )
        if self._pending:
            self._sum.add_(adjusted)
        else:
            self._sum.copy_(adjusted)
        self._pending.extend(arrivals)

    def is_complete(self) -> bool:
        """Whether enough arrivals are accumulated for the next version; a bound on staleness may still hold it back."""
        needed = arrivals_needed(self._strategy, self.version, self.num_active)
        return bool(self._pending) and len(self._pending) >= needed

    def advance(self, under_way: Collection[int] = ()) -> Update | None:
        """Make the next version if its arrivals are complete.

        `under_way`: the base versions of gradients that active workers compute or have in their slots; a bound on staleness
        that waits holds the update back while it would leave one of them too stale.
        """
        if not self.is_complete() or any(self._would_be_too_stale(base) for base in under_way):
            return None
        return self._apply()

    def refuse(self, arrival: Arrival, refusal: Refusal) -> None:
        """Count `arrival` as refused without looking at its gradient. A longer run, resumed, computes its batch again."""
        self._count_refused([arrival], refusal)

    def take_refused(self) -> list[tuple[Arrival, Refusal]]:
        """The arrivals refused since this was last asked, each once, for whoever reports them."""
        taken, self._refused = self._refused, []
        return taken

    def leave(self, worker: int) -> None:
        """`worker` has no more data: N = `workers` counts one less from now on."""
        self._active.discard(worker)

    def finish(self) -> Update | None:
        """At the end of the data: apply what is pending, or drop and count it, as configured."""
        if self._pending and self._strategy.pending == "apply":
            return self._apply()
        self._refuse_pending(Refusal.DROPPED_PENDING)
        return None

    def forget_base_versions(self, oldest_under_way: int) -> None:
        """No gradient computed on a version older than `oldest_under_way` will come any more."""
        for version in [v for v in self._base_parameters if v < min(oldest_under_way, self.version)]:
            del self._base_parameters[version]

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that decides the future: tensors (the live ones, not copies) and plain data.

        In lock-step the pending arrivals are left out and their batches count as not arrived: a resumed run computes them
        again on the same version and equals an unbroken one.
        """
        keep_pending = bool(self._pending) and not is_synchronous(self._strategy, self.version)
        tensors = self._rule.state()
        if keep_pending:
            tensors["pending_sum"] = self._sum
        ledger = self.ledger if keep_pending else self.ledger.without([a.batch for a in self._pending])
        return tensors, {
            "version": self.version,
            "tokens": self.tokens,
            "pending": [asdict(arrival) for arrival in self._pending] if keep_pending else [],
            "applied": dict(self.applied),
            "refused": [[worker, reason.value, count] for (worker, reason), count in self.refused.items()],
            "ledger": ledger.to_json(),
        }

    def load_state(self, tensors: Mapping[str, torch.Tensor], data: Mapping[str, Any]) -> None:
        """Continue from what `state` gave. Raises `ValueError` or `KeyError` if it does not fit this store."""
        self._rule.load_state(tensors)
        self.version, self.tokens = data["version"], data["tokens"]
        self._pending = [Arrival(**fields) for fields in data["pending"]]
        if self._pending:
            self._sum.copy_(tensors["pending_sum"])
        self.applied = Counter({int(worker): count for worker, count in data["applied"].items()})
        self.refused = Counter({(worker, Refusal(reason)): count for worker, reason, count in data["refused"]})
        self.ledger = BatchLedger(**data["ledger"])
        self._base_parameters.clear()
        self._remember_parameters()

    def _would_be_too_stale(self, base_version: int) -> bool:
        """Whether a gradient on `base_version` may not miss the update that is complete now."""
        bound, on_stale = self._strategy.max_staleness, self._strategy.on_stale
        return bound is not None and on_stale == "wait" and self.version + 1 - base_version > bound

    def _reason_to_refuse(self, arrival: Arrival, gradient: torch.Tensor) -> Refusal | None:
        bound = self._strategy.max_staleness
        if bound is not None and self._strategy.on_stale == "drop" and self.version - arrival.base_version > bound:
            return Refusal.TOO_STALE
        smallest, largest = torch.aminmax(gradient)  # one pass, no copy; a NaN anywhere makes both NaN
        if not (torch.isfinite(smallest) and torch.isfinite(largest)):
            return Refusal.NOT_FINITE
        return None

    def _apply(self) -> Update | None:
        tokens = sum(arrival.tokens for arrival in self._pending)
        if self._strategy.reduction == "token_mean":
            self._sum.div_(max(1, tokens))
        figures = self._rule.step(self._sum, self.version + 1, self.tokens + tokens)
        if figures is None:
            self._refuse_pending(Refusal.SUM_NOT_FINITE)
            return None
        self.version += 1
        self.tokens += tokens
        update = Update(self.version, self.pending, figures.learning_rate, figures.gradient_norm)
        self.applied.update(arrival.worker for arrival in self._pending)
        self._pending = []
        self._remember_parameters()
        return update

    def _refuse_pending(self, refusal: Refusal) -> None:
        self._count_refused(self._pending, refusal)
        self._pending = []

    def _count_refused(self, arrivals: Sequence[Arrival], refusal: Refusal) -> None:
        self.refused.update((arrival.worker, refusal) for arrival in arrivals)
        self._refused += [(arrival, refusal) for arrival in arrivals]

    def _remember_parameters(self) -> None:
        if staleness.needs_base_parameters(self._strategy):
            self._base_parameters[self.version] = self.parameters.clone()
