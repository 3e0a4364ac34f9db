"""One vector for a model's parameters and one for its gradients."""

from __future__ import annotations

import pytest
import torch

from hvd_async.vectors.flat import FlatParameters, Piece


class Tied(torch.nn.Module):
    """Two layers of which the second uses the weight of the first, and one parameter that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 3)
        self.second = torch.nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.frozen = torch.nn.Parameter(torch.full((2,), 5.0), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)).sum() + self.frozen.sum()


def seeded() -> Tied:
    torch.manual_seed(1)
    return Tied()


FROZEN = 10.0  # what the frozen parameter adds to the result
X = torch.arange(6.0).view(2, 3)


def test_parameters_lie_in_order_each_on_its_own_cache_line_and_tied_ones_once() -> None:
    flat = FlatParameters(seeded())
    assert flat.pieces == (Piece("first.weight", (3, 3), 0), Piece("first.bias", (3,), 16))
    assert [piece.size for piece in flat.pieces] == [9, 3]
    assert flat.size == 32 == flat.parameters.numel() == flat.gradient.numel()
    assert flat.num_parameters == 9 + 3 + 2


def test_frozen_parameters_stay_in_place_and_are_named_with_the_others() -> None:
    model = seeded()
    model.frozen.data = model.frozen.data.double()  # of any type
    flat = FlatParameters(model)
    flat.parameters.mul_(0.5)
    assert model.frozen.tolist() == [5.0, 5.0]
    assert flat.named_tensors(torch.zeros(flat.size))["frozen"].data_ptr() == model.frozen.data_ptr()


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="without parameters that require a gradient"):
        FlatParameters(torch.nn.Linear(2, 2).requires_grad_(False))


def test_values_move_and_gaps_are_zero() -> None:
    model = seeded()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    flat = FlatParameters(model)
    named = flat.named_tensors(flat.parameters)
    assert named.keys() == before.keys() and all(torch.equal(named[name], before[name]) for name in before)
    for view in named.values():
        view.zero_()
    assert not flat.parameters.any()


def test_the_model_computes_with_the_parameters_in_the_vector() -> None:
    model = seeded()
    expected = model(X)
    flat = FlatParameters(model)
    assert torch.equal(model(X), expected)
    flat.parameters.zero_()
    assert model(X).item() == FROZEN


def test_backward_adds_into_the_vector() -> None:
    reference = seeded()
    reference(X).backward()
    flat = FlatParameters(model := seeded())
    for times in (1, 2):
        model(X).backward()
        named = flat.named_tensors(flat.collect_gradient())
        for name, parameter in reference.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(named[name], times * parameter.grad)
    flat.zero_gradient()
    assert not flat.gradient.any()


def test_gradients_outside_the_vector_are_collected() -> None:
    flat = FlatParameters(model := seeded())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0) if parameter.requires_grad else None
    named = flat.named_tensors(flat.collect_gradient())
    assert {name: tensor.unique().tolist() for name, tensor in named.items()} == {
        "frozen": [5.0],
        "first.weight": [3.0],
        "first.bias": [3.0],
    }


def test_after_a_gradient_outside_the_vector_the_next_is_inside_again() -> None:
    flat = FlatParameters(model := seeded())
    model.first.weight.grad = torch.ones(3, 3)
    flat.collect_gradient()
    flat.zero_gradient()
    model(X).backward()
    assert model.first.weight.grad is not None
    assert model.first.weight.grad.data_ptr() == flat.named_tensors(flat.gradient)["first.weight"].data_ptr()


def test_other_parameters_are_used_only_inside_the_block_even_after_an_error() -> None:
    flat = FlatParameters(model := seeded())
    before, outside = flat.parameters.clone(), model(X)
    with pytest.raises(ZeroDivisionError), flat.with_parameters(torch.zeros(flat.size)):
        assert model(X).item() == FROZEN
        raise ZeroDivisionError
    assert torch.equal(flat.parameters, before) and torch.equal(model(X), outside)


def test_parameters_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match=r"parameter weight: got torch.float64, expected float32; use autocast"):
        FlatParameters(torch.nn.Linear(2, 2).double())
