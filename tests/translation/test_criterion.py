from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hvd_async.tasks.translation.batching import collate
from hvd_async.tasks.translation.criterion import cross_entropy_sum, output_tokens
from hvd_async.tasks.translation.vocabulary import EOS, PAD


def test_uniform_logits_cost_the_logarithm_of_the_size_for_each_token() -> None:
    loss = cross_entropy_sum(torch.zeros(3, 8), torch.tensor([4, 5, 6]), label_smoothing=0.1)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(3 * math.log(8), rel=1e-6)


def test_padding_costs_nothing() -> None:
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    with_padding = cross_entropy_sum(logits, torch.tensor([4, PAD, 6]), 0.1)
    torch.testing.assert_close(with_padding, cross_entropy_sum(logits[[0, 2]], torch.tensor([4, 6]), 0.1))


def test_smoothing_spreads_its_share_over_all_tokens() -> None:
    logits = torch.randn(1, 5, generator=torch.Generator().manual_seed(1))
    log_probs = F.log_softmax(logits, dim=1)[0]
    expected = -(0.8 * log_probs[4] + 0.2 * log_probs.mean())
    torch.testing.assert_close(cross_entropy_sum(logits, torch.tensor([4]), 0.2), expected)


def test_losses_of_batches_add_up() -> None:
    logits, targets = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([4, 5, 6, 7])
    parts = [cross_entropy_sum(logits[i : i + 2], targets[i : i + 2], 0.1) for i in (0, 2)]
    torch.testing.assert_close(parts[0] + parts[1], cross_entropy_sum(logits, targets, 0.1))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_and_gradient_are_those_of_torch(label_smoothing: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (5.0 * torch.randn(6, 9, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = torch.tensor([4, PAD, 6, 8, PAD, 4])
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        found = cross_entropy_sum(logits.to(dtype), targets, label_smoothing)
        expected = F.cross_entropy(logits, targets, ignore_index=PAD, reduction="sum", label_smoothing=label_smoothing)
        assert found.item() == pytest.approx(expected.item(), rel=tolerance)
        (gradient,), (expected_gradient,) = (
            torch.autograd.grad(3.0 * found, logits),
            torch.autograd.grad(3.0 * expected, logits),
        )
        torch.testing.assert_close(gradient, expected_gradient, rtol=tolerance, atol=tolerance)


def test_a_second_backward_is_refused() -> None:
    logits = torch.zeros(1, 8, requires_grad=True)
    loss = cross_entropy_sum(logits, torch.tensor([4]))
    torch.autograd.backward(loss, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(loss)


def test_logits_far_apart_give_finite_losses_and_gradients() -> None:
    logits = torch.tensor([[0.0, 1e4, -1e4, 0.0, 5e3]], requires_grad=True)
    loss = cross_entropy_sum(logits, torch.tensor([4]), 0.1)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, torch.tensor([4]), label_smoothing=0.1).item())
    torch.autograd.backward(loss)
    expected = torch.tensor([[-0.02, 0.98, -0.02, -0.02, -0.92]])
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected)


def test_logits_are_left_as_they_are() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        before = logits.detach().clone()
        torch.autograd.backward(cross_entropy_sum(logits, torch.tensor([4, 5, 6]), 0.1))
        assert torch.equal(logits, before)
        assert logits.grad is not None
        assert logits.grad.dtype == dtype


def test_half_precision_logits_are_summed_in_float32() -> None:
    loss = cross_entropy_sum(torch.zeros(1000, 8, dtype=torch.bfloat16), torch.full((1000,), 4))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1000 * math.log(8), rel=1e-5)


def test_output_tokens_leave_out_padding() -> None:
    assert output_tokens(collate([[4], [5]], [[6, 7], []])).tolist() == [6, 7, EOS, EOS]
    assert output_tokens(collate([[4]], [[6]])).tolist() == [6, EOS]
