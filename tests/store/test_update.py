"""Clipping, the moving average and the schedule inside an optimizer step, against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from hvd_async.config import OptimizerConfig, ScheduleConfig
from hvd_async.store.update import StepFigures, UpdateRule
from tests.store.stores import sgd


def test_a_long_gradient_is_scaled_down_to_the_norm() -> None:
    rule = UpdateRule(torch.zeros(2), sgd(clip_norm=1.0))
    assert rule.step(torch.tensor([3.0, 4.0]), version=1, tokens=1) == StepFigures(1.0, 5.0)
    assert rule.parameters.tolist() == pytest.approx([-0.6, -0.8])


def test_a_short_gradient_is_not_clipped() -> None:
    rule = UpdateRule(torch.zeros(2), sgd(clip_norm=5.0))
    rule.step(torch.tensor([3.0, 4.0]), version=1, tokens=1)
    assert rule.parameters.tolist() == [-3.0, -4.0]


def test_the_moving_average_follows_closely_at_first_and_then_decays_as_configured() -> None:
    rule = UpdateRule(torch.zeros(1), sgd(average_decay=0.25))
    expected, parameter = 0.0, 0.0
    for version in range(1, 6):
        rule.step(torch.tensor([-8.0]), version=version, tokens=1)
        parameter += 8.0
        decay = min(0.25, (1 + version) / (10 + version))  # 2/11, then 3/12 = 0.25, and no more
        expected = decay * expected + (1 - decay) * parameter
        assert rule.average is not None
        assert rule.average.item() == pytest.approx(expected)


def test_there_is_no_average_unless_it_is_asked_for() -> None:
    assert UpdateRule(torch.zeros(1), sgd()).average is None


def test_the_rate_follows_the_version() -> None:
    rule = UpdateRule(torch.zeros(1), sgd(learning_rate=2.0, schedule=ScheduleConfig(kind="constant", warmup=4)))
    figures = [rule.step(torch.tensor([1.0]), version=version, tokens=1) for version in (1, 2, 3, 4, 5)]
    assert [f.learning_rate for f in figures if f is not None] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rule.parameters.item() == -7.0


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])  # the last: finite, but its norm is not
def test_a_norm_that_is_not_finite_changes_nothing(value: float) -> None:
    rule = UpdateRule(torch.ones(2), OptimizerConfig(average_decay=0.5))
    rule.step(torch.ones(2), version=1, tokens=1)
    before = {name: tensor.clone() for name, tensor in rule.state().items()}
    assert rule.step(torch.full((2,), value), version=2, tokens=1) is None
    after = rule.state()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_the_state_names_every_tensor_that_decides_the_future() -> None:
    rule = UpdateRule(torch.zeros(2), OptimizerConfig(average_decay=0.5))
    rule.step(torch.ones(2), version=1, tokens=1)
    names = ["average", "optimizer.exp_avg", "optimizer.exp_avg_sq", "optimizer.step", "parameters"]
    assert sorted(rule.state()) == names


def test_a_state_without_its_average_is_refused() -> None:
    with pytest.raises(ValueError, match="got no average"):
        UpdateRule(torch.zeros(2), sgd(average_decay=0.5)).load_state(UpdateRule(torch.zeros(2), sgd()).state())
