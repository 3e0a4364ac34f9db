"""The architectures of translation models, by their names in a configuration. A new architecture is listed here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from hvd_async.config import ModelConfig
from hvd_async.errors import ConfigError
from hvd_async.tasks.translation.gru import AttentionalGru
from hvd_async.tasks.translation.model import TranslationModel
from hvd_async.tasks.translation.transformer import Transformer

_KINDS: Mapping[str, type[AttentionalGru] | type[Transformer]] = {"transformer": Transformer, "gru": AttentionalGru}


def build_model(config: ModelConfig, vocabulary_size: int, source_size: int | None = None) -> TranslationModel:
    """Return the model that `config` describes, drawn from torch's global random generator, which the caller seeds.
    `source_size`: of the source's vocabulary, if it is not the target's.

    Switches cuDNN's attention off in this process: on a GPU it would be planned anew for each shape, and almost every batch
    and every step of decoding has a shape of its own; see docs/performance.md.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    return _KINDS[config.kind](config, vocabulary_size, source_size)


def shapes_of_model(config: ModelConfig, vocabulary_size: int, source_size: int | None = None) -> TranslationModel:
    """Return the model that `config` describes on the device `meta`: its tensors have shapes, but neither memory nor values."""
    with torch.device("meta"), _Undrawn():
        return build_model(config, vocabulary_size, source_size)


def check_memory(config: ModelConfig, vocabulary_size: int, source_size: int | None = None) -> None:
    """Raise `ConfigError` for a model whose parameters alone exceed the memory of this machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    model = shapes_of_model(config, vocabulary_size, source_size)
    size = sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
    if size > memory:
        raise ConfigError(
            f"model: got parameters of {size / 1e9:,.0f} GB, expected less than the {memory / 1e9:,.0f} GB"
            " of memory here; reduce width, layers, max_positions or task.vocabulary.size"
        )


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they are where random numbers would be drawn: on the device `meta` torch would load its compiler for
    that, which takes more than a second."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, unless it draws numbers: then return its tensor."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
