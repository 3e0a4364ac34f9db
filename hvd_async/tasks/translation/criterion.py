"""Cross entropy summed over target tokens, so that gradients of different batches add up by weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvd_async.tasks.translation.batching import Batch
from hvd_async.tasks.translation.vocabulary import PAD


def cross_entropy_sum(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the sum over positions of the cross entropy in nats, a scalar; `logits` ([num, V]) of half precision are
    summed in float32.

    `targets` is [num] int64; padding counts as nothing. The smoothed target is 1 - label_smoothing for the token, plus
    label_smoothing spread evenly over all V tokens, as in torch.
    """
    loss_sum: Tensor = _SmoothedCrossEntropy.apply(logits, targets, label_smoothing)  # type: ignore[no-untyped-call]
    return loss_sum


class _SmoothedCrossEntropy(torch.autograd.Function):
    """`F.cross_entropy` with its gradient, softmax - smoothed target, computed in the one tensor that is kept for it.

    torch would exponentiate a second time in the backward pass, and fill dense tensors of [num, V] for token and
    smoothing each.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        is_half = logits.dtype.itemsize < 4
        working = logits.float() if is_half else logits
        token = working.gather(1, targets[:, None]).squeeze(1)  # [num]
        mean = working.mean(dim=1)
        largest = working.amax(dim=1)
        probabilities = torch.softmax(working, dim=1, out=working if is_half else None)  # [num, V]
        # log sum exp(logits), from the most probable token, whose probability is never below 1 / V.
        normalizer = largest - probabilities.amax(dim=1).log()
        counts = (targets != PAD).to(working.dtype)
        ctx.save_for_backward(probabilities, targets, counts)
        ctx.label_smoothing, ctx.dtype = label_smoothing, logits.dtype
        return ((normalizer - (1.0 - label_smoothing) * token - label_smoothing * mean) * counts).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        gradient, targets, counts = ctx.saved_tensors
        # In place: autograd refuses a second backward pass through the graph, since the tensor has changed.
        if ctx.label_smoothing:
            gradient.sub_(ctx.label_smoothing / gradient.shape[1])
        gradient.scatter_add_(1, targets[:, None], gradient.new_full((len(targets), 1), ctx.label_smoothing - 1.0))
        gradient.mul_((counts * grad_loss)[:, None])
        return gradient.to(ctx.dtype), None, None


def output_tokens(batch: Batch) -> Tensor:
    """Return the tokens that the model's logits for `batch` are to predict, in the order of the logits: [num_tokens]
    int64."""
    flat = batch.target_output.flatten()
    return flat if batch.target_positions is None else flat.index_select(0, batch.target_positions)
