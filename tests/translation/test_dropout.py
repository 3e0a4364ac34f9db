from __future__ import annotations

import pytest
import torch

from hvd_async.tasks.translation.dropout import Dropout

SIZE = 100_003  # not a multiple of the four elements of one draw


def dropped(p: float, seed: int = 1, size: int = SIZE) -> torch.Tensor:
    torch.manual_seed(seed)
    result: torch.Tensor = Dropout(p)(torch.ones(size))
    return result


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_given_share_is_dropped_and_the_rest_scaled_up(p: float) -> None:
    result = dropped(p)
    kept = result != 0
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / SIZE) ** 0.5)
    torch.testing.assert_close(result[kept], torch.full((int(kept.sum()),), 1 / (1 - p)), rtol=2e-4, atol=0)
    assert result[kept].min() == result[kept].max()


def test_the_four_elements_of_a_draw_are_dropped_equally_often() -> None:
    shares = (dropped(0.1)[: SIZE - SIZE % 4].view(-1, 4) == 0).float().mean(dim=0)
    torch.testing.assert_close(shares, torch.full((4,), 0.1), rtol=0, atol=0.01)


def test_neighbours_are_dropped_independently() -> None:
    is_dropped = dropped(0.5) == 0
    for distance in (1, 2, 3, 4):
        both = (is_dropped[distance:] & is_dropped[:-distance]).float().mean().item()
        assert both == pytest.approx(0.25, abs=0.01)


def test_the_mask_depends_only_on_the_seed() -> None:
    assert torch.equal(dropped(0.1), dropped(0.1))
    assert not torch.equal(dropped(0.1), dropped(0.1, seed=2))


def test_the_number_of_threads_does_not_change_the_mask() -> None:
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(dropped(0.1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adding_to_a_residual_is_dropout_and_a_sum(dtype: torch.dtype) -> None:
    dropout = Dropout(0.3)
    x, output = torch.randn(2, 3, 5).to(dtype).requires_grad_(), torch.randn(2, 3, 5).to(dtype).requires_grad_()
    results = []
    for compute in (lambda: dropout.added(x, output), lambda: x + dropout(output)):
        torch.manual_seed(1)
        result = compute()
        results.append((result, *torch.autograd.grad(result.square().sum(), (x, output))))
    for found, expected in zip(*results, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected)


def test_a_half_precision_output_is_added_in_the_precision_of_the_residual() -> None:
    torch.manual_seed(1)
    added = Dropout(0.1).added(torch.zeros(50), torch.ones(50, dtype=torch.bfloat16))
    assert added.dtype == torch.float32
    torch.testing.assert_close(added, dropped(0.1, size=50))


@pytest.mark.parametrize("dropout", [Dropout(0.0), Dropout(0.5).eval()])
def test_nothing_is_dropped_in_eval_mode_or_at_zero(dropout: Dropout) -> None:
    x = torch.randn(7)
    assert dropout(x) is x
    assert torch.equal(dropout.added(x, x), x + x)


def test_almost_everything_may_be_dropped() -> None:
    assert torch.isfinite(dropped(1 - 1e-9)).all()
