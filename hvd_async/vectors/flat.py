"""A model's parameters and gradients as two flat vectors, so that a push or a pull is one copy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

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


class FlatParameters:
    """The trained parameters of `model`, moved into one float32 vector, and their gradients, in a second one.

    After construction every parameter that requires a gradient is a view of `parameters`, and `backward` adds into views
    of `gradient`. Tied parameters appear once. Frozen parameters stay where they are, so that no weight decay, average or
    push touches them; every rank has them from the model that it built. Buffers are not moved either: a model whose
    buffers change in training (running statistics) keeps them per rank, outside what these vectors exchange.

    Attributes:
        parameters: [size], float32, on `device`; the model reads it, and the owner may overwrite it between steps.
        gradient: [size], float32, on `device`.
        pieces: name, shape and offset of each trained parameter, in the model's order.
        num_parameters: elements of all parameters, frozen ones included.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device | str = "cpu") -> None:
        """Move the parameters. Raises `TypeError` if a trained parameter is not float32, `ValueError` if none is trained."""
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not trained:
            raise ValueError("got a model without parameters that require a gradient, expected at least one")
        self.pieces, self.size = _lay_out(trained)
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.parameters = torch.zeros(self.size, dtype=torch.float32, device=device)
        self.gradient = torch.zeros_like(self.parameters)
        self._trained: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        model.to(device)
        self._frozen = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
        for piece, (_, parameter) in zip(self.pieces, trained, strict=True):
            view = self._view(self.parameters, piece)
            view.copy_(parameter.detach())
            parameter.data = view
            self._trained.append((parameter, self._view(self.gradient, piece)))
        self.zero_gradient()

    def zero_gradient(self) -> None:
        """Clear `gradient` and let the next `backward` add into it."""
        self.gradient.zero_()
        for parameter, view in self._trained:
            parameter.grad = view

    def collect_gradient(self) -> torch.Tensor:
        """Return `gradient` ([size], float32) after `backward`, even if autograd or DDP put a parameter's gradient
        elsewhere."""
        for parameter, view in self._trained:
            if parameter.grad is not None and parameter.grad.data_ptr() != view.data_ptr():
                view.copy_(parameter.grad)
        return self.gradient

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


def _lay_out(trained: Sequence[tuple[str, torch.nn.Parameter]]) -> tuple[tuple[Piece, ...], int]:
    pieces, offset = [], 0
    for name, parameter in trained:
        if parameter.dtype != torch.float32:
            raise TypeError(f"parameter {name}: got {parameter.dtype}, expected float32; use autocast for lower precision")
        piece = Piece(name, tuple(parameter.shape), offset)
        pieces.append(piece)
        offset += -(-piece.size // _ALIGNMENT) * _ALIGNMENT
    return tuple(pieces), offset
