"""Running statistics of a model, computed from its parameters over some batches, instead of those that training left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from hvd_async.tasks.evaluating import keeping_modes


def recalibrated_buffers(model: nn.Module) -> Sequence[str]:
    """Return the names of the buffers of `model` that `calibrated` computes: those of BatchNorm and InstanceNorm, but not in
    layers that stay in evaluation mode while the model trains."""
    with keeping_modes(model):
        model.train()
        names = {id(module) for module in _with_statistics(model)}
        return [
            f"{prefix}.{name}" if prefix else name
            for prefix, module in model.named_modules(remove_duplicate=False)
            if id(module) in names
            for name, buffer in module.named_buffers(recurse=False)
            if buffer is not None
        ]


@contextlib.contextmanager
def calibrated(model: nn.Module, num_batches: int, forward: Callable[[int], None]) -> Iterator[None]:
    """Give the norms of `model` means over `num_batches` batches, which `forward` passes through it, inside the block; a
    context manager. Afterwards, also after an exception, the model is as before."""
    places = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with contextlib.ExitStack() as stack:
        stack.callback(_give_back, places)
        with keeping_modes(model):
            model.train()
            norms = _with_statistics(model)
            own = {id(norm._buffers) for norm in norms}
            with _keeping_momenta(norms):
                for norm in norms:
                    norm.reset_running_stats()
                with torch.no_grad():
                    for number in range(num_batches):
                        for norm in norms:
                            # Means of all batches so far. BatchNorm counts its batches itself; InstanceNorm does not.
                            norm.momentum = None if isinstance(norm, _BatchNorm) else 1.0 / (number + 1)
                        forward(number)
        _give_back([place for place in places if id(place[0]) not in own])
        yield


@contextlib.contextmanager
def _keeping_momenta(norms: Sequence[_NormBase]) -> Iterator[None]:
    momenta = [norm.momentum for norm in norms]
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _with_statistics(model: nn.Module) -> list[_NormBase]:
    """Return the norms of `model` that are in training mode and keep running statistics."""
    found = [module for module in model.modules() if isinstance(module, _NormBase)]
    return [module for module in found if module.training and module.track_running_stats and module.running_mean is not None]


def _give_back(places: Sequence[tuple[dict[str, Tensor | None], str, Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffers, name, buffer, value in places:
            if not torch.equal(buffer, value):  # an expanded one cannot be written, and is never changed
                buffer.copy_(value)
            buffers[name] = buffer
