"""The loss: cross entropy summed over target tokens, so that gradients of different batches add up by weight."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hvd_async.nmt.batching import Batch
from hvd_async.nmt.vocabulary import PAD


def cross_entropy_sum(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Sum over positions of the cross entropy, in nats: a scalar; `logits` ([num, V]) of half precision are
    summed in float32.

    `targets` is [num] int64; padding counts nothing. The smoothed target is 1 - label_smoothing for the token, and
    label_smoothing spread evenly over all V tokens, as in torch.
    """
    logits = logits if logits.dtype.itemsize >= 4 else logits.float()
    return F.cross_entropy(logits, targets, ignore_index=PAD, reduction="sum", label_smoothing=label_smoothing)


def output_tokens(batch: Batch) -> Tensor:
    """[num_tokens] int64: the tokens that the model's logits for `batch` are to predict, in the same order."""
    flat = batch.target_output.flatten()
    return flat if batch.target_positions is None else flat.index_select(0, batch.target_positions)
