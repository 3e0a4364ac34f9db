"""Scaled dot-product attention, as the architectures use it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any) -> Tensor:
    """Return [B, H, T, D]: queries [B, H, T, D] over keys and values [B, H, S, D] (Vaswani et al. 2017, section 3.2.1).

    `mask`: [B, S] bool, True where to attend. `settings`: torch's `dropout_p`, `is_causal` and `scale`. On a CPU bfloat16 is
    computed in float32: torch's backward pass of attention takes nine times as long in bfloat16 there, which is more than
    bfloat16 saves elsewhere.
    """
    wide = None if mask is None else mask[:, None, None, :]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    if query.device.type != "cpu" or dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, wide, **settings)
    with torch.autocast("cpu", enabled=False):
        attended = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), wide, **settings)
        return attended.to(torch.bfloat16)
