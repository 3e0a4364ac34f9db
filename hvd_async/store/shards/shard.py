"""The vectors of one contiguous range of the parameters, and the arithmetic on them.

With several shards, each does the same operations in the same order on its own range.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch

from hvd_async.config import OptimizerConfig
from hvd_async.store.optimizers.factory import make_optimizers, state_names
from hvd_async.store.optimizers.protocol import Operands, Optimizer, StepOrder
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.vectors import arithmetic

# Gradients that wait in their slots to be summed in one pass. A core does not prefetch more streams well.
MAX_UNREAD = 16


def past_names(num_past: int, version: int) -> list[str]:
    """Return the names of the parameters of up to `num_past` versions before `version`, the most recent first."""
    return [f"past_{number}" for number in range(1, min(num_past, version) + 1)]


class Shard:
    """Sums gradients and steps. Used by one thread.

    Attributes:
        version: the version of `parameters`.
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
        ranges: Sequence[slice] = (),
        allocate: Callable[[str], torch.Tensor] | None = None,
    ) -> None:
        """Take ownership of `buffers` ([size] float32 each): version v is made in `buffers[v % len(buffers)]`.

        The parameters of `version` are already in their buffer. `provisional`: vectors that `provisional_step` fills in
        turn. `allocate` returns the memory ([size] float32, zeros) for a name of `state_names`; default: ordinary memory on
        the device of the first buffer. `keeps_bases`: keep past versions for `compensate`. `num_past`: number of versions
        before the newest that can be read; at least `num_past` + 1 buffers are needed. `ranges`: the elements of each group
        of parameters of `optimizer`, by its number, without gaps; each starts at a multiple of `arithmetic.BLOCK`.
        """
        assert num_past < len(buffers)
        self.version = version
        self._num_past = num_past
        self._buffers = buffers
        self._provisional = provisional
        self.ranges = ranges
        self._segments = make_optimizers(optimizer, ranges or [slice(0, buffers[0].numel())])
        self._bases: dict[int, torch.Tensor] | None = {} if keeps_bases else None
        if allocate is None:
            size, device = buffers[0].numel(), buffers[0].device
            names = state_names(optimizer)
            self._vectors = {name: arithmetic.zeros_apart(size, number, device) for number, name in enumerate(names)}
        else:
            self._vectors = {name: allocate(name) for name in state_names(optimizer)}
        for range_, each in self._segments:
            for name in each.state_names if each.initial_state else ():
                self._vectors[name][range_] = each.initial_state
        self._unread: list[arithmetic.Input] = []
        self._has_sum = False
        if "average" in self._vectors:
            self._vectors["average"].copy_(self.parameters)
        self._remember()

    @property
    def parameters(self) -> torch.Tensor:
        """Parameters of `version`: [size], float32. With more than one buffer, the next version is made in other memory."""
        return self._buffers[self.version % len(self._buffers)]

    def read(self, name: str) -> torch.Tensor:
        """Return the live vector `name`: `parameters`, or a name of `state_names` or `past_names`. [size], float32."""
        if name in (past := past_names(self._num_past, self.version)):
            return self._buffers[(self.version - 1 - past.index(name)) % len(self._buffers)]
        return self.parameters if name == "parameters" else self._vectors[name]

    def add(self, gradient: Gradient, divisor: float) -> None:
        """Add `gradient` / `divisor` to the pending sum. A whole gradient is read only by the next `flush`, `norm` or
        `step`, and must stay unchanged until then."""
        if gradient.indices is None:
            self._unread.append(arithmetic.Input(gradient.values, divisor))
            return
        total = self._vectors["pending_sum"]
        if not self._has_sum:
            total.zero_()
            self._has_sum = True
        values = gradient.values.float()
        total.index_add_(0, gradient.indices, values if divisor == 1.0 else values / divisor)

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
        """Read the whole gradients that were added since the last pass; they may be overwritten afterwards."""
        if self._unread:
            arithmetic.sum_inputs(self._inputs(), self._vectors["pending_sum"], 1.0)
            self._unread, self._has_sum = [], True

    def norm(self, divisor: float) -> list[float]:
        """Flush; return the sums of squares of sum / `divisor`, block by block, for `arithmetic.norm`."""
        partials = arithmetic.sum_inputs(self._inputs(), self._vectors["pending_sum"], divisor)
        self._unread, self._has_sum = [], True
        return partials

    def step(self, order: StepOrder) -> list[float]:
        """Make the next version from all added gradients; return the sums that `norm(order.divisor)` would return."""
        target = self._buffers[order.version % len(self._buffers)]
        partials: list[float] = []
        for optimizer, inputs, operands in self._parts(target):
            partials += optimizer.step(inputs, operands, order)
        self.version = order.version
        self.discard()
        self._remember()
        return partials

    def provisional_step(self, order: StepOrder, number: int) -> None:
        """Write the result of a step with all added gradients into provisional vector `number`, the vectors being used in
        turn.

        Nothing else changes, except that the added gradients are flushed.
        """
        self.flush()
        target = self._provisional[number % len(self._provisional)]
        for optimizer, inputs, operands in self._parts(target):
            optimizer.provisional_step(inputs, operands, order)

    def _parts(self, target: torch.Tensor) -> Iterator[tuple[Optimizer, Sequence[arithmetic.Input], Operands]]:
        """Yield the optimizer of each group with its part of all inputs and vectors, for a step from `parameters` to
        `target`."""
        inputs = self._inputs()
        for range_, optimizer in self._segments:
            own = [arithmetic.Input(each.vector[range_], each.divisor) for each in inputs]
            names = [name for name in (*optimizer.state_names, "average") if name in self._vectors]
            vectors = {name: self._vectors[name][range_] for name in names}
            yield optimizer, own, Operands(self.parameters[range_], target[range_], vectors)

    def discard(self) -> None:
        """Drop all gradients added since the last version."""
        self._unread, self._has_sum = [], False

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
            self._vectors["pending_sum"].copy_(tensors["pending_sum"])
            self._has_sum = True
        if self._bases is not None:
            self._bases.clear()
        self._remember()

    def _inputs(self) -> list[arithmetic.Input]:
        return ([arithmetic.Input(self._vectors["pending_sum"])] if self._has_sum else []) + self._unread

    def _remember(self) -> None:
        if self._bases is not None:
            self._bases[self.version] = self.parameters.clone()
