"""Buffers of any model: what its state_dict has besides parameters, and which of it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hvd_async.errors import ConfigError
from hvd_async.system.printable import printable


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the state_dict of `model` that are no parameters: buffers, live, and extra state."""
    parameters = {id(parameter) for parameter in model.parameters()}
    return {
        name: value.detach()
        for name, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor) and id(value) not in parameters
    }


def load_saved_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give `model` those of `tensors` that its state_dict has. Raises `ConfigError` if one does not fit."""
    names = saved_tensors(model).keys()
    try:
        model.load_state_dict({name: tensor for name, tensor in tensors.items() if name in names}, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"model: saved buffers do not fit: {printable(reason)}; expected the model of the run") from None


def modules_with_statistics(model: nn.Module) -> list[str]:
    """Return the names of the modules of `model` that are known to keep running statistics."""
    return [name for name, module in model.named_modules() if getattr(module, "track_running_stats", False)]


def changed_tensors(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Sequence[str]:
    """Return the names of those that are not, bit by bit, as they were, or that came or went."""
    return [
        name
        for name in [*before, *(after.keys() - before.keys())]
        if name not in before or name not in after or not _are_equal(before[name], after[name])
    ]


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Whether both have the same bits; NaN equals itself."""
    if one.dtype != other.dtype or one.shape != other.shape or one.device != other.device:
        return False
    return torch.equal(_bytes_of(one), _bytes_of(other))


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
