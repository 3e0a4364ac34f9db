"""Muon: matrices are updated by their orthogonalized momentum, all other parameters by AdamW."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hvd_async.config import OptimizerConfig
from hvd_async.store.optimizers.kernels import AdamW
from hvd_async.store.optimizers.protocol import Operands, StepOrder, average_weight, summed
from hvd_async.vectors import arithmetic
from hvd_async.vectors.vector_map import Matrix

# Coefficients of the Newton-Schulz iteration of Jordan et al. 2024, which takes singular values to about 1 in few iterations.
_CUBIC = (3.4445, -4.7750, 2.0315)
# The root mean square of an AdamW update, to which a matrix update is scaled (Liu et al. 2025, section 2.2).
_RMS_OF_ADAMW = 0.2


class Muon:
    """Muon with Nesterov momentum (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"), scaled and
    decayed as in Liu et al. 2025 ("Muon is scalable for LLM training", arXiv 2502.16982), so that rates of AdamW fit:

        m = momentum * m + g;  u = g + momentum * m
        p = p * (1 - rate * decay) - rate * scale * orthogonalized(u);  scale = 0.2 * sqrt(max(rows, columns))

    or, with `muon_scale: original`, as by Jordan et al., scale = sqrt(max(1, rows / columns)), for each matrix p with gradient g.
    Elements of no matrix are AdamW's. The state of a matrix is `first_moment`, its m; its part of `second_moment` stays zero, and
    takes no memory until something writes to it.

    A provisional step leaves m as it is. Matrix products of the CPU may differ in the last bits between numbers of threads.
    """

    can_redo = False
    initial_state = 0.0

    def __init__(self, config: OptimizerConfig, matrices: Sequence[Matrix] = ()) -> None:
        """`config` has kind `muon`. `matrices`: in order, from the start of the group's elements."""
        self._config = config
        self._matrices = matrices
        self._others = AdamW(config.model_copy(update={"kind": "adamw"}))

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the vectors, those of AdamW."""
        return self._others.state_names

    def step(self, inputs: Sequence[arithmetic.Input], operands: Operands, order: StepOrder) -> list[float]:
        """Make the step `order`; see `Optimizer`."""
        matrices, others = self._halves(operands.target.numel())
        partials = self._step_matrices(_part(inputs, matrices), _part_of(operands, matrices), order, is_provisional=False)
        if others.start < others.stop:
            partials += self._others.step(_part(inputs, others), _part_of(operands, others), order)
        return partials

    def provisional_step(self, inputs: Sequence[arithmetic.Input], operands: Operands, order: StepOrder) -> None:
        """Write the result of the step `order`; see `Optimizer`."""
        inputs, (matrices, others) = summed(inputs, operands), self._halves(operands.target.numel())
        self._step_matrices(_part(inputs, matrices), _part_of(operands, matrices), order, is_provisional=True)
        if others.start < others.stop:
            self._others.provisional_step(_part(inputs, others), _part_of(operands, others), order)

    def _halves(self, size: int) -> tuple[slice, slice]:
        """Return the elements of the matrices, with the gaps between them, and the others."""
        end = _blocks(self._matrices[-1].stop) if self._matrices else 0
        return slice(0, min(end, size)), slice(min(end, size), size)

    def _step_matrices(
        self, inputs: Sequence[arithmetic.Input], operands: Operands, order: StepOrder, *, is_provisional: bool
    ) -> list[float]:
        """Make the step on all matrices; return the sums of squares."""
        if not self._matrices:
            return []
        config = self._config
        rate = config.learning_rate * order.rate_factor
        momenta = operands.vectors["first_moment"]
        if operands.target.data_ptr() != operands.parameters.data_ptr():
            arithmetic.copy(operands.parameters, operands.target)  # the gaps, too
        partials: list[float] = []
        for each in self._matrices:  # one after the other: beside the vectors there is room for the largest of them
            part = slice(each.start, min(operands.target.numel(), _blocks(each.stop)))
            gradient = torch.empty_like(operands.target[part])
            partials += arithmetic.sum_inputs(_part(inputs, part), gradient, order.divisor)
            target, momentum = (_view(vector, each) for vector in (operands.target, momenta))
            own = gradient.mul_(order.clip / order.divisor)[: each.stop - each.start].view_as(target)
            momentum = (momentum * config.muon_momentum if is_provisional else momentum.mul_(config.muon_momentum)).add_(own)
            direction = orthogonalized(own.add_(momentum, alpha=config.muon_momentum), config.muon_iterations)
            target.mul_(1 - rate * config.weight_decay)
            target.sub_(direction, alpha=rate * self._scale(each))
        weight, average = average_weight(config, order.version), operands.vectors.get("average")
        if weight is not None and average is not None and not is_provisional:
            average.add_((operands.target - average).mul_(weight))
        return partials

    def _scale(self, matrix: Matrix) -> float:
        """Return the factor of an update of `matrix`."""
        if self._config.muon_scale == "original":
            return math.sqrt(max(1.0, matrix.rows / matrix.columns))
        return _RMS_OF_ADAMW * math.sqrt(max(matrix.rows, matrix.columns))


def orthogonalized(matrix: torch.Tensor, iterations: int) -> torch.Tensor:
    """Return about U V^T for the singular value decomposition U S V^T of `matrix` ([rows, columns], float32), by Newton-Schulz
    iterations: singular values come to lie between 0.7 and 1.2. Zeros stay zeros."""
    first, third, fifth = _CUBIC
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (torch.linalg.vector_norm(x) + 1e-7)
    for _ in range(iterations):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=third, alpha=fifth), x, beta=first)
    return x.T if is_tall else x


def _blocks(stop: int) -> int:
    """Return the first multiple of a block from `stop` on."""
    return -(-stop // arithmetic.BLOCK) * arithmetic.BLOCK


def _view(vector: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    return vector[matrix.start : matrix.stop].view(matrix.rows, matrix.columns)


def _part(inputs: Sequence[arithmetic.Input], part: slice) -> list[arithmetic.Input]:
    return [arithmetic.Input(each.vector[part], each.divisor) for each in inputs]


def _part_of(operands: Operands, part: slice) -> Operands:
    vectors = {name: vector[part] for name, vector in operands.vectors.items()}
    return Operands(operands.parameters[part], operands.target[part], vectors)
