"""The vectors of one contiguous range of the parameters, and the arithmetic on them.

With several shards, each does the same operations in the same order on its own range.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from hvd_async.config import OptimizerConfig
from hvd_async.store.optimizers.factory import make_optimizers, state_names
from hvd_async.store.optimizers.protocol import Operands, Optimizer, StepOrder
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.vectors import arithmetic
from hvd_async.vectors.redo import Redo, RedoPart, StepProgress
from hvd_async.vectors.vector_map import VectorMap

OTHER_SUM = "other_sum"
"""Name of the second vector for the pending sum in a block."""
# Gradients that wait in their slots to be summed in one pass. A core does not prefetch more streams well.
MAX_UNREAD = 8


def past_names(num_past: int, version: int) -> list[str]:
    """Return the names of the parameters of up to `num_past` versions before `version`, the most recent first."""
    return [f"past_{number}" for number in range(1, min(num_past, version) + 1)]


@dataclass(frozen=True)
class KeptMemory:
    """Memory that outlives the process: the record of steps, and a second vector for the pending sum ([size] float32), which is
    made in the two in turn. `is_left`: a process that has died left it, and all other memory of the shard, with the pending sum
    in `sum_place`."""

    redo: Redo
    other_sum: torch.Tensor
    is_left: bool = False
    sum_place: int | None = None


class Shard:
    """Sums gradients and steps. Used by one thread.

    Attributes:
        version: the version of `parameters`.
        vector_map: groups and matrices of the vectors.
    """

    def __init__(
        self,
        buffers: Sequence[torch.Tensor],
        optimizer: OptimizerConfig,
        version: int = 0,
        *,
        provisional: Sequence[torch.Tensor] = (),
        keeps_bases: bool = False,
        num_past: int = 0,
        vector_map: VectorMap | None = None,
        allocate: Callable[[str], torch.Tensor] | None = None,
        kept: KeptMemory | None = None,
    ) -> None:
        """Take ownership of `buffers` ([size] float32 each): version v is made in `buffers[v % len(buffers)]`.

        The parameters of `version` are already in their buffer. `provisional`: vectors that `provisional_step` fills in
        turn. `allocate` returns the memory ([size] float32, zeros) for a name of `state_names`; default: ordinary memory on
        the device of the first buffer. `kept`: memory by which another process can go on when this one dies. `keeps_bases`: keep
        past versions for `compensate`. `num_past`: number of versions before the newest that can be read; at least `num_past` + 1
        buffers are needed. `vector_map`: groups of parameters, and matrices; default: one group, no matrices.
        """
        assert num_past < len(buffers)
        self.version = version
        self._num_past = num_past
        self._buffers = buffers
        self._provisional = provisional
        self.vector_map = VectorMap.of_size(buffers[0].numel()) if vector_map is None else vector_map
        self._segments = make_optimizers(optimizer, self.vector_map)
        self._bases: dict[int, torch.Tensor] | None = {} if keeps_bases else None
        if allocate is None:
            size, device = buffers[0].numel(), buffers[0].device
            names = state_names(optimizer)
            self._vectors = {name: arithmetic.zeros_apart(size, number, device) for number, name in enumerate(names)}
        else:
            self._vectors = {name: allocate(name) for name in state_names(optimizer)}
        self._redo = None if kept is None else kept.redo
        self._sums = [self._vectors["pending_sum"]] + ([] if kept is None else [kept.other_sum])
        self.sum_place: int | None = None if kept is None else kept.sum_place
        """Which of the vectors for the pending sum holds it; None: nothing was added to it."""
        self._unread: list[tuple[Gradient, float]] = []
        if kept is None or not kept.is_left:
            self._begin()
        self._remember()

    def _begin(self) -> None:
        """Set the state that a run begins with."""
        for range_, each in self._segments:
            for name in each.state_names if each.initial_state else ():
                self._vectors[name][range_] = each.initial_state
        if "average" in self._vectors:
            self._vectors["average"].copy_(self.parameters)

    @property
    def parameters(self) -> torch.Tensor:
        """Parameters of `version`: [size], float32. With more than one buffer, the next version is made in other memory."""
        return self._buffers[self.version % len(self._buffers)]

    def read(self, name: str) -> torch.Tensor:
        """Return the live vector `name`: `parameters`, or a name of `state_names` or `past_names`. [size], float32."""
        if name in (past := past_names(self._num_past, self.version)):
            return self._buffers[(self.version - 1 - past.index(name)) % len(self._buffers)]
        if name == "pending_sum":
            return self._sums[self.sum_place or 0]
        return self.parameters if name == "parameters" else self._vectors[name]

    def add(self, gradient: Gradient, divisor: float) -> None:
        """Add `gradient` / `divisor` to the pending sum. It is read only by the next `flush`, `norm` or `step`, and must stay
        unchanged until then."""
        self._unread.append((gradient, divisor))

    def compensate(self, gradient: Gradient, base_version: int, factor: float) -> None:
        """Add g + factor * g * g * (parameters - parameters of `base_version`) to the pending sum at once."""
        assert self._bases is not None
        if gradient.indices is None:
            values = gradient.values.float()
        else:
            values = torch.zeros_like(self.parameters).index_add_(0, gradient.indices, gradient.values.float())
        drift = self.parameters - self._bases[base_version]
        self.add(Gradient(torch.addcmul(values, values * values, drift, value=factor), gradient.largest), 1.0)
        self.flush()

    def flush(self) -> None:
        """Read the gradients that were added since the last pass; they may be overwritten afterwards."""
        if self._unread:
            self._sum_up(1.0)

    def norm(self, divisor: float) -> list[float]:
        """Flush; return the sums of squares of sum / `divisor`, block by block, for `arithmetic.norm`."""
        if self._unread and not self._is_sparse():
            return self._sum_up(divisor)
        self.flush()
        return arithmetic.sum_inputs(self._inputs(), None, divisor)

    def _sum_up(self, divisor: float) -> list[float]:
        """Read the gradients that were added; return the sums of squares as `norm` does, if they are whole."""
        place = self._next_place()
        total, partials = self._sums[place], []
        if not self._is_sparse():
            partials = arithmetic.sum_inputs(self._inputs(), total, divisor)
        else:
            if self.sum_place is None:
                total.zero_()
            elif place != self.sum_place:
                arithmetic.copy(self._sums[self.sum_place], total)
            for gradient, own_divisor in self._unread:
                values = gradient.values.float()
                values = values if own_divisor == 1.0 else values / own_divisor
                if gradient.indices is None:  # compensated
                    total.add_(values)
                else:
                    total.index_add_(0, gradient.indices, values)
        self._unread, self.sum_place = [], place
        return partials

    def _next_place(self) -> int:
        """Return which of the vectors takes the next sum: not the one that has the sum before, if there are two, so that what a
        process leaves that dies in it counts for nothing."""
        return 0 if self.sum_place is None else (self.sum_place + 1) % len(self._sums)

    def _is_sparse(self) -> bool:
        """Whether one of the gradients that were added is a few elements."""
        return any(gradient.indices is not None for gradient, _ in self._unread)

    def step(self, order: StepOrder) -> list[float]:
        """Make the next version from all added gradients; return the sums that `norm(order.divisor)` would return.

        If a process that has died began this step, as the record says, complete it.
        """
        if self._is_sparse():
            self.flush()
        target = self._buffers[order.version % len(self._buffers)]
        begun = None if self._redo is None else self._redo.progress
        if begun is None or begun.version != order.version:
            begun = StepProgress(order.version, -1)
        partials: list[float] = []
        for number, (optimizer, inputs, operands) in enumerate(self._parts(target)):
            if number < begun.part:
                partials += arithmetic.sum_inputs(inputs, None, order.divisor)
                continue
            if self._redo is not None:
                record = RedoPart(self._redo, StepProgress(order.version, number), is_again=number == begun.part)
                operands = dataclasses.replace(operands, redo=record)
            partials += optimizer.step(inputs, operands, order)
        if self._redo is not None:
            self._redo.end(order.version, len(self._segments))
        self.version = order.version
        self.discard()
        self._remember()
        return partials

    def provisional_step(self, order: StepOrder, number: int) -> None:
        """Write the result of a step with all added gradients into provisional vector `number`, the vectors being used in
        turn.

        Nothing else changes, except that the added gradients are flushed, if possible in the same pass.
        """
        if self._is_sparse():
            self.flush()
        place = self._next_place()
        total = self._sums[place] if self._unread else None
        target = self._provisional[number % len(self._provisional)]
        for optimizer, inputs, operands in self._parts(target, total):
            optimizer.provisional_step(inputs, operands, order)
        if self._unread:
            self._unread, self.sum_place = [], place

    def _parts(
        self, target: torch.Tensor, total: torch.Tensor | None = None
    ) -> Iterator[tuple[Optimizer, Sequence[arithmetic.Input], Operands]]:
        """Yield the optimizer of each group with its part of all inputs and vectors, for a step from `parameters` to
        `target`, in which the sum of the inputs goes to `total`."""
        inputs = self._inputs()
        for range_, optimizer in self._segments:
            own = [arithmetic.Input(each.vector[range_], each.divisor) for each in inputs]
            names = [name for name in (*optimizer.state_names, "average") if name in self._vectors]
            vectors = {name: self._vectors[name][range_] for name in names}
            own_total = None if total is None else total[range_]
            yield optimizer, own, Operands(self.parameters[range_], target[range_], vectors, total=own_total)

    def discard(self) -> None:
        """Drop all gradients added since the last version."""
        self._unread, self.sum_place = [], None

    def forget(self, version: int) -> None:
        """Drop the base parameters of `version`, unless it is the newest: no gradient computed on it can arrive any more."""
        if self._bases is not None and version < self.version:
            self._bases.pop(version, None)

    def load(self, tensors: Mapping[str, torch.Tensor], version: int) -> None:
        """Restore `tensors`, as `read` returned them, at `version`. Raises `ValueError` if one is missing or has another
        size.

        `pending_sum`, if given, becomes the pending sum.
        """
        past = past_names(self._num_past, version)
        names: Collection[str] = ["parameters", *past, *(name for name in self._vectors if name != "pending_sum")]
        if missing := set(names) - tensors.keys():
            raise ValueError(f"got no {', '.join(sorted(missing))}")
        size = self.parameters.numel()
        for name in names:
            if tensors[name].numel() != size:
                raise ValueError(f"got {tensors[name].numel()} elements of {name}, expected {size}")
        self.version = version
        self.discard()
        for name in names:
            self.read(name).copy_(tensors[name])
        if "pending_sum" in tensors:
            self._sums[0].copy_(tensors["pending_sum"])
            self.sum_place = 0
        if self._bases is not None:
            self._bases.clear()
        self._remember()

    def _inputs(self) -> list[arithmetic.Input]:
        before = [] if self.sum_place is None else [arithmetic.Input(self._sums[self.sum_place])]
        return before + [arithmetic.Input(gradient.values, divisor) for gradient, divisor in self._unread]

    def _remember(self) -> None:
        if self._bases is not None:
            self._bases[self.version] = self.parameters.clone()
