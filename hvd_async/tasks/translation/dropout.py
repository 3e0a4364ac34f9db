"""Dropout with masks that are drawn fast on a CPU, from torch's global random source."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16  # 16 random bits decide each element of a mask
_LOWEST_INT64 = -(2**63)


class Dropout(nn.Module):
    """Dropout like `nn.Dropout`, alone or with the sum of a residual connection.

    On a CPU, `p` is rounded to a multiple of 2^-16 and the scale is that of the rounded `p`, so that expectations are
    exact. torch spends a generator call and a division on each element; here one call draws four. Masks follow torch's
    seed, whatever the number of threads.
    """

    def __init__(self, p: float) -> None:
        """Set `p`, the share to drop, from 0 to below 1."""
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with a share of its elements set to 0 and the others scaled up; in eval mode `x` itself."""
        if not self.training or self.p == 0.0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * _cpu_mask(x, self.p)

    def added(self, x: Tensor, output: Tensor) -> Tensor:
        """Return `x` + dropout of `output`, which has the shape of `x`."""
        if not self.training or self.p == 0.0 or x.device.type != "cpu":
            dropped: Tensor = self(output)
            return x + dropped
        return torch.addcmul(x, output.to(x.dtype), _cpu_mask(x, self.p))

    def extra_repr(self) -> str:
        """Return the text that `print(model)` shows."""
        return f"p={self.p}"


def _cpu_mask(x: Tensor, p: float) -> Tensor:
    """Return a mask like `x`: 0 where elements are dropped, else the scale that keeps expectations."""
    dropped = min(round(p * _LEVELS), _LEVELS - 1)
    size = x.numel()
    words = torch.empty((size + 3) // 4, dtype=torch.int64).random_(_LOWEST_INT64, None)
    level = words.view(torch.int16)[:size].float()  # integers from -2^15
    # 1 where level >= dropped - 2^15, else 0. A comparison and the conversion of its result are slower than arithmetic.
    kept = level.sub_(dropped - 1 - _LEVELS // 2).clamp_(0.0, 1.0)
    return kept.mul_(_LEVELS / (_LEVELS - dropped)).to(x.dtype).view(x.shape)
