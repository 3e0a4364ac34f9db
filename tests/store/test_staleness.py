"""Treatment of stale gradients, compared with values computed by hand."""

from __future__ import annotations

import pytest
import torch

from hvd_async.store.optimizers.protocol import StepOrder
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.staleness import compensation, divisor, needs_base_parameters
from tests.store.stores import asynchronous, make_shard, sgd


@pytest.mark.parametrize("policy", ["none", "delay_compensation"])
def test_these_policies_leave_the_weight_at_one(policy: str) -> None:
    assert divisor(asynchronous(staleness_policy=policy), 5) == 1.0


def test_inverse_divides_by_one_more_than_the_staleness() -> None:
    strategy = asynchronous(staleness_policy="inverse")
    assert [divisor(strategy, staleness) for staleness in (0, 1, 3)] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(("policy", "staleness"), [("none", 5), ("inverse", 5), ("delay_compensation", 0)])
def test_nothing_is_compensated_without_the_policy_or_without_staleness(policy: str, staleness: int) -> None:
    assert compensation(asynchronous(staleness_policy=policy), staleness, 2) is None


def test_delay_compensation_adds_the_squared_mean_gradient_times_the_drift() -> None:
    strategy = asynchronous(staleness_policy="delay_compensation", delay_compensation=0.5)
    shard = make_shard(strategy, sgd(), size=3)
    shard.add(Gradient.measure(torch.tensor([-1.0, -2.0, -3.0])), 1.0)
    shard.step(StepOrder(1, 1.0, 1.0))
    assert shard.parameters.tolist() == [1.0, 2.0, 3.0]  # the drift since version 0
    weight = compensation(strategy, 1, 2)
    assert weight is not None
    gradient = torch.tensor([4.0, -8.0, 0.0])
    shard.compensate(Gradient.measure(gradient), 0, weight)
    # The mean gradient over a weight of 2 is (2, -4, 0); corrected with lambda 0.5: (2 + 2 * 1, -4 + 8 * 2, 0) = (4, 12, 0).
    assert (shard.read("pending_sum") / 2).tolist() == [4.0, 12.0, 0.0]
    assert gradient.tolist() == [4.0, -8.0, 0.0]


def test_only_delay_compensation_needs_the_parameters_of_the_base_version() -> None:
    needed = {p: needs_base_parameters(asynchronous(staleness_policy=p)) for p in ("none", "inverse", "delay_compensation")}
    assert needed == {"none": False, "inverse": False, "delay_compensation": True}
