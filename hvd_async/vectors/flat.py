"""A model's parameters and gradients as two flat vectors, so that a push or a pull is one copy."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from hvd_async.vectors.arithmetic import BLOCK
from hvd_async.vectors.vector_map import Matrix, VectorMap

# Every tensor begins at a multiple of 64 bytes of the vector, which matrix kernels prefer; the gaps stay zero.
_ALIGNMENT = 16


@dataclass(frozen=True)
class Piece:
    """Place of one parameter in the flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class VectorPlan:
    """The layout of a model's trained parameters in one vector, before there is any: the pieces, group by group, matrices
    before the others of their group; and the map of the vector."""

    pieces: tuple[Piece, ...]
    map: VectorMap

    @property
    def size(self) -> int:
        """Number of elements, gaps included."""
        return int(self.map.groups[-1].stop)

    @classmethod
    def of(
        cls,
        model: torch.nn.Module,
        group_of: Callable[[str], int] = lambda name: 0,
        num_groups: int = 1,
        is_matrix: Callable[[str, Sequence[int]], bool] = lambda name, shape: False,
    ) -> VectorPlan:
        """Return the layout of `model`. `is_matrix`: which parameters, by name and shape, an optimizer updates as a whole."""
        shapes = [(name, tuple(each.shape)) for name, each in model.named_parameters() if each.requires_grad]
        pieces: list[Piece] = []
        matrices: list[Matrix] = []
        starts, offset = [], 0
        for group in range(num_groups):
            offset = _rounded(offset, BLOCK)
            starts.append(offset)
            own = [each for each in shapes if group_of(each[0]) == group]
            for name, shape in (each for each in own if is_matrix(*each)):
                pieces.append(Piece(name, shape, offset))
                matrices.append(Matrix(offset, shape[0], pieces[-1].size // shape[0]))
                offset = _rounded(matrices[-1].stop, BLOCK)
            for name, shape in (each for each in own if not is_matrix(*each)):
                pieces.append(Piece(name, shape, offset))
                offset += _rounded(pieces[-1].size, _ALIGNMENT)
        groups = tuple(slice(start, end) for start, end in itertools.pairwise([*starts, offset]))
        return cls(tuple(pieces), VectorMap(groups, tuple(matrices)))


class FlatParameters:
    """The trained parameters of `model`, moved into one float32 vector, and their gradients, in a second one.

    After construction every parameter that requires a gradient is a view of `parameters`, and `backward` adds into views
    of `gradient`. Tied parameters appear once. Frozen parameters stay where they are, so that no weight decay, average or
    push touches them; every rank has them from the model that it built. Buffers are not moved either: a model whose
    buffers change in training (running statistics) keeps them per rank, outside what these vectors exchange.

    Attributes:
        parameters: [size], float32, on `device`; the model reads it, and the owner may overwrite it between steps.
        pieces: name, shape and offset of each trained parameter, in the order of the vector.
        num_parameters: elements of all parameters, frozen ones included.
        map: groups of parameters, and the matrices among them.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        device: torch.device | str = "cpu",
        plan: VectorPlan | None = None,
        trains: bool = True,
    ) -> None:
        """Move the parameters of `model` to their places in `plan`; default: one group. `trains`: whether gradients will be
        computed.

        Raises `TypeError` if a trained parameter is not float32, `ValueError` if none is trained.
        """
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not trained:
            raise ValueError("got a model without parameters that require a gradient, expected at least one")
        for name, parameter in trained:
            if parameter.dtype != torch.float32:
                raise TypeError(
                    f"parameter {name}: got {parameter.dtype}, expected float32; use autocast for lower precision"
                )
        plan = VectorPlan.of(model) if plan is None else plan
        self.pieces, self.map, self.size = plan.pieces, plan.map, plan.size
        parameters = dict(trained)
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.parameters = torch.zeros(self.size, dtype=torch.float32, device=device)
        self._gradient: torch.Tensor | None = None
        self._trained: list[torch.nn.Parameter] = []
        self._views: list[torch.Tensor] = []  # of the gradient, one for each of the trained parameters
        model.to(device)
        self._frozen = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
        for piece in self.pieces:
            parameter = parameters[piece.name]
            view = self._view(self.parameters, piece)
            view.copy_(parameter.detach())
            parameter.data = view
            self._trained.append(parameter)
        if trains:
            self.zero_gradient()

    @property
    def gradient(self) -> torch.Tensor:
        """[size], float32, on the device of `parameters`. Made at its first use: a rank that does not train never has one."""
        if self._gradient is None:
            self._gradient = torch.zeros_like(self.parameters)
            self._views = [self._view(self._gradient, piece) for piece in self.pieces]
        return self._gradient

    def zero_gradient(self) -> None:
        """Clear `gradient` and let the next `backward` add into it."""
        self.gradient.zero_()
        for parameter, view in zip(self._trained, self._views, strict=True):
            parameter.grad = view

    def collect_gradient(self) -> torch.Tensor:
        """Return `gradient` ([size], float32) after `backward`, even if autograd or DDP put a parameter's gradient
        elsewhere. A parameter whose gradient was set to None has gradient 0. Afterwards all gradients are parts of it."""
        gradient = self.gradient
        for parameter, view in zip(self._trained, self._views, strict=True):
            if parameter.grad is None:
                view.zero_()
            elif parameter.grad.data_ptr() != view.data_ptr():
                view.copy_(parameter.grad)
            else:
                continue
            parameter.grad = view
        return gradient

    def strayed(self, model: torch.nn.Module) -> str:
        """Return the name of a trained parameter of `model` that is no longer part of `parameters`, or is new; empty if all are
        as they were. A model strays if it is moved or cast, or if a parameter is replaced."""
        addresses = {parameter.data_ptr() for parameter in self._trained}
        start, end = self.parameters.data_ptr(), self.parameters.data_ptr() + 4 * self.size
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not (start <= parameter.data_ptr() < end and parameter.data_ptr() in addresses):
                return name
        return ""

    def named_tensors(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return views of `vector` ([size], any device) by the names of the trained parameters, and the frozen parameters
        by theirs."""
        views = {piece.name: self._view(vector, piece) for piece in self.pieces}
        return views | {name: parameter.detach() for name, parameter in self._frozen.items()}

    @contextlib.contextmanager
    def with_parameters(self, vector: torch.Tensor) -> Iterator[None]:
        """Make the model compute with `vector` ([size], float32, any device) inside the block, and as before afterwards."""
        held = self.parameters.clone()
        self.parameters.copy_(vector)
        try:
            yield
        finally:
            self.parameters.copy_(held)

    @staticmethod
    def _view(vector: torch.Tensor, piece: Piece) -> torch.Tensor:
        return vector[piece.offset : piece.offset + piece.size].view(piece.shape)


def _rounded(number: int, unit: int) -> int:
    """Return the first multiple of `unit` from `number` on."""
    return -(-number // unit) * unit
