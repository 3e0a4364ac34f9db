"""What is done to stale gradients, against values computed by hand."""

from __future__ import annotations

import pytest
import torch

from hvd_async.store.staleness import adjust, needs_base_parameters
from tests.store.stores import asynchronous

GRADIENT = torch.tensor([4.0, -8.0, 0.0])
DRIFT = torch.tensor([1.0, 2.0, 3.0])


def test_no_policy_leaves_the_gradient_alone() -> None:
    strategy = asynchronous(staleness_policy="none")
    assert adjust(GRADIENT, strategy, staleness=5, tokens=2, drift=None) is GRADIENT


@pytest.mark.parametrize("policy", ["inverse", "delay_compensation"])
def test_a_fresh_gradient_is_returned_as_it_is(policy: str) -> None:
    strategy = asynchronous(staleness_policy=policy)
    assert adjust(GRADIENT, strategy, staleness=0, tokens=2, drift=DRIFT) is GRADIENT


def test_inverse_divides_by_one_more_than_the_staleness() -> None:
    adjusted = adjust(GRADIENT, asynchronous(staleness_policy="inverse"), staleness=3, tokens=2, drift=None)
    assert adjusted.tolist() == [1.0, -2.0, 0.0]


def test_delay_compensation_adds_the_squared_mean_gradient_times_the_drift() -> None:
    # The mean gradient over 2 tokens is (2, -4, 0); corrected with lambda 0.5: (2 + 2 * 1, -4 + 8 * 2, 0) = (4, 12, 0).
    strategy = asynchronous(staleness_policy="delay_compensation", delay_compensation=0.5)
    adjusted = adjust(GRADIENT, strategy, staleness=1, tokens=2, drift=DRIFT)
    assert (adjusted / 2).tolist() == [4.0, 12.0, 0.0]


@pytest.mark.parametrize("policy", ["inverse", "delay_compensation"])
def test_the_gradient_given_is_unchanged(policy: str) -> None:
    gradient = GRADIENT.clone()
    adjusted = adjust(gradient, asynchronous(staleness_policy=policy), staleness=1, tokens=1, drift=DRIFT)
    assert not torch.equal(adjusted, GRADIENT)
    assert torch.equal(gradient, GRADIENT)


def test_only_delay_compensation_needs_the_parameters_of_the_base_version() -> None:
    needed = {p: needs_base_parameters(asynchronous(staleness_policy=p)) for p in ("none", "inverse", "delay_compensation")}
    assert needed == {"none": False, "inverse": False, "delay_compensation": True}
