"""The vectors of one contiguous range of the parameters, and the arithmetic on them.

A store of one shard has one of these; of several, each shard does the same things in the same order to its own range.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch

from hvd_async.config import OptimizerConfig
from hvd_async.store.gradient import Gradient
from hvd_async.store.optimizer import StepOrder, make_optimizer, state_names, step_state
from hvd_async.vectors import arithmetic

# Gradients that wait in their slots to be summed in one pass; more would be more streams than a core fetches well.
MAX_HELD = 16


def past_names(num_past: int, version: int) -> list[str]:
    """The parameters of versions before `version`, up to `num_past` of them, by name: first those of the one before."""
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
        allocate: Callable[[str], torch.Tensor] | None = None,
    ) -> None:
        """`buffers` ([size] float32 each) become the shard's own: version v is made in `buffers[v % len(buffers)]`.

        Those of `version` lie there already. `provisional`: vectors that `provisional_step` fills in turns. `allocate` gives the
        memory ([size] float32, zeros) for a name of `state_names`; by default it is ordinary memory beside the first buffer.
        `keeps_bases`: past versions are kept for `compensate`. `num_past`: so many versions before the newest can be read; it
        takes as many buffers, and one.
        """
        assert num_past < len(buffers)
        self.version = version
        self._num_past = num_past
        self._buffers = buffers
        self._provisional = provisional
        self._optimizer = make_optimizer(optimizer)
        self._bases: dict[int, torch.Tensor] | None = {} if keeps_bases else None
        if allocate is None:
            size, device = buffers[0].numel(), buffers[0].device
            names = state_names(optimizer)
            self._vectors = {name: arithmetic.zeros_apart(size, number, device) for number, name in enumerate(names)}
        else:
            self._vectors = {name: allocate(name) for name in state_names(optimizer)}
        self._held: list[arithmetic.Input] = []
        self._has_sum = False
        if "average" in self._vectors:
            self._vectors["average"].copy_(self.parameters)
        self._remember()

    @property
    def parameters(self) -> torch.Tensor:
        """The parameters of `version`: [size], float32; the memory of the next versions is another, if there are buffers."""
        return self._buffers[self.version % len(self._buffers)]

    def read(self, name: str) -> torch.Tensor:
        """The live vector `parameters`, or one of `state_names` or `past_names`: [size], float32."""
        if name in (past := past_names(self._num_past, self.version)):
            return self._buffers[(self.version - 1 - past.index(name)) % len(self._buffers)]
        return self.parameters if name == "parameters" else self._vectors[name]

    def add(self, gradient: Gradient, divisor: float) -> None:
        """Take `gradient` / `divisor` into the next sum. A whole one is read only by the next `flush`, `norm` or `step`, and
        must stay unchanged until then."""
        if gradient.indices is None:
            self._held.append(arithmetic.Input(gradient.values, divisor))
            return
        total = self._vectors["pending_sum"]
        if not self._has_sum:
            total.zero_()
            self._has_sum = True
        values = gradient.values.float()
        total.index_add_(0, gradient.indices, values if divisor == 1.0 else values / divisor)

    def compensate(self, gradient: Gradient, base_version: int, weight: float) -> None:
        """Take in g + weight * g * g * (parameters - parameters of `base_version`), at once."""
        assert self._bases is not None
        if gradient.indices is None:
            values = gradient.values.float()
        else:
            values = torch.zeros_like(self.parameters).index_add_(0, gradient.indices, gradient.values.float())
        drift = self.parameters - self._bases[base_version]
        self.add(Gradient(torch.addcmul(values, values * values, drift, value=weight), gradient.largest), 1.0)
        self.flush()

    def flush(self) -> None:
        """Add up what is held; the gradients may then be overwritten."""
        if self._held:
            arithmetic.sum_inputs(self._inputs(), self._vectors["pending_sum"], 1.0)
            self._held, self._has_sum = [], True

    def norm(self, divisor: float) -> list[float]:
        """As `flush`, and the sums of squares of sum / divisor, block by block: see `arithmetic.norm`."""
        partials = arithmetic.sum_inputs(self._inputs(), self._vectors["pending_sum"], divisor)
        self._held, self._has_sum = [], True
        return partials

    def step(self, order: StepOrder) -> list[float]:
        """Make the next version of all that was taken in; returns what `norm(order.divisor)` would have."""
        inputs = self._inputs()
        target = self._buffers[order.version % len(self._buffers)]
        state = step_state(self._optimizer, self.parameters, target, self._vectors)
        partials = arithmetic.step(inputs, state, self._optimizer.rule(order))
        self.version = order.version
        self.discard()
        self._remember()
        return partials

    def provisional_step(self, order: StepOrder, number: int) -> None:
        """Make, in vector `number` of the provisional ones, in turns, what a step with all that was taken in would make.

        Nothing else changes, but that what was added is flushed.
        """
        self.flush()
        target = self._provisional[number % len(self._provisional)]
        vectors = {name: self._vectors[name] for name in self._optimizer.state_names}
        state = step_state(self._optimizer, self.parameters, target, vectors)
        arithmetic.step(self._inputs(), state, self._optimizer.provisional_rule(order))

    def discard(self) -> None:
        """Forget all that was taken in since the last version."""
        self._held, self._has_sum = [], False

    def forget(self, version: int) -> None:
        """No gradient computed on `version`, which is not the newest, will come any more."""
        if self._bases is not None and version < self.version:
            self._bases.pop(version, None)

    def load(self, tensors: Mapping[str, torch.Tensor], version: int) -> None:
        """Continue from `tensors`, those of `read`, at `version`. Raises `ValueError` if one is missing or of another size.

        `pending_sum`, where it is given, counts as taken in.
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
        return ([arithmetic.Input(self._vectors["pending_sum"])] if self._has_sum else []) + self._held

    def _remember(self) -> None:
        if self._bases is not None:
            self._bases[self.version] = self.parameters.clone()
