"""Models of users: whether one can be trained and exported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hvd_async.errors import ConfigError
from hvd_async.system.printable import printable
from hvd_async.tasks.task import Task
from hvd_async.tasks.user_values import describe_value


def model_of(task: Task) -> nn.Module:
    """Return a model of `task`, whose buffers can all be written. Raises `ConfigError` as `check_model` does."""
    model = task.build_model()
    check_model(model)
    _own_buffers(model)
    return model


def _own_buffers(model: nn.Module) -> None:
    """Give each buffer of `model` that was expanded memory for all of its elements, so that it can be written."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and any(
                step == 0 and size > 1 for step, size in zip(buffer.stride(), buffer.shape, strict=True)
            ):
                module._buffers[name] = buffer.contiguous()


def check_model(model: Any) -> None:
    """Raise `ConfigError` unless `model` is a module whose parameters can be trained in one vector, and whose state_dict can be
    written without pickle."""
    if not isinstance(model, nn.Module):
        hint = "; make one of the class" if isinstance(model, type) and issubclass(model, nn.Module) else ""
        raise ConfigError(f"model: got {describe_value(model)}, expected a torch.nn.Module{hint}")
    if isinstance(model, DistributedDataParallel | DataParallel):
        raise ConfigError(f"model: got {type(model).__name__}, expected the model inside of it: pass model.module")
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        if nn.parameter.is_lazy(tensor):
            raise ConfigError(
                f"model: {printable(name)}: got a lazy tensor without a shape, expected one; call the model with a batch before"
            )
        if tensor.is_meta:
            raise ConfigError(f"model: {printable(name)}: got a tensor on the meta device, expected one with values")
        if tensor.layout is not torch.strided:
            raise ConfigError(
                f"model: {printable(name)}: got the layout {tensor.layout}, expected a dense one: use to_dense()"
            )
    trained = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    if not trained:
        raise ConfigError("model: got no parameter that requires a gradient, expected at least one")
    for name, parameter in trained:
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ConfigError(
                f"model: {printable(name)}: got a hook on its accumulated gradient, such as that of an optimizer which steps in"
                " backward; expected none: the store makes the updates of all parameters together"
            )
        if parameter.dtype != torch.float32:
            raise ConfigError(
                f"model: {printable(name)}: got a parameter of {parameter.dtype}, expected torch.float32; model.float() makes it"
                " so, and autocast computes in lower precision"
            )
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"model: {printable(name)}: got {describe_value(value)} in the state_dict, expected tensors alone, which are"
                " exported without pickle: let get_extra_state return a tensor, or remove it"
            )
