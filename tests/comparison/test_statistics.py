"""Means, intervals and times to a target, from runs whose figures are known."""

from __future__ import annotations

import math

import pytest

from hvd_async.comparison.statistics import Interval, Reached, mean_interval, ratio_interval, reached, weight_efficiency
from hvd_async.comparison.target import Target, common_target
from hvd_async.tasks.metric import Metric
from tests.comparison.made import ACCURACY, LOSS, PERPLEXITY, run


@pytest.mark.parametrize(
    ("loss", "seconds"),
    [
        (4.0, 10.0),  # exactly the first measurement
        (3.0, 15.0),  # half way from 4 to 2
        (2.5, 17.5),
        (2.0, 20.0),  # exactly a measurement
        (1.5, 45.0),  # after a plateau, half way from 1.75 to 1.25
        (1.0, 50.0),
        (0.5, None),
    ],
)
def test_between_two_measurements_the_time_is_interpolated(loss: float, seconds: float | None) -> None:
    falling = run((10.0, 4.0), (20.0, 2.0), (30.0, 2.0), (42.0, 1.75), (48.0, 1.25), (50.0, 1.0))
    found = reached(falling, Target(LOSS, loss))
    assert (None if found is None else found.seconds) == seconds


def test_weight_and_updates_are_interpolated_as_well() -> None:
    assert reached(run((10.0, 4.0), (20.0, 2.0)), Target(LOSS, 3.0)) == Reached(15.0, 150.0, 7.5)


def test_a_target_reached_at_the_first_measurement_is_a_bound() -> None:
    found = reached(run((10.0, 4.0), (20.0, 2.0)), Target(LOSS, 5.0))
    assert found == Reached(10.0, 100, 5, is_bound=True)


def test_the_first_time_counts_even_if_the_loss_rises_again() -> None:
    found = reached(run((10.0, 4.0), (20.0, 2.0), (30.0, 5.0), (40.0, 1.0)), Target(LOSS, 3.0))
    assert found is not None and found.seconds == 15.0


@pytest.mark.parametrize("diverged", [math.nan, math.inf])
def test_a_measurement_that_is_not_finite_is_skipped(diverged: float) -> None:
    found = reached(run((5.0, diverged), (10.0, 4.0), (15.0, diverged), (20.0, 2.0), (30.0, diverged)), Target(LOSS, 3.0))
    assert found is not None and found.seconds == 15.0
    assert reached(run((5.0, diverged)), Target(LOSS, 3.0)) is None


@pytest.mark.parametrize(
    ("metric", "scores", "value", "beyond"),
    [
        (ACCURACY, (60.0, None, 80.0, 70.0), 70.0, 80.5),  # from below
        (PERPLEXITY, (60.0, None, 40.0, 50.0), 50.0, 39.5),  # from above
        (Metric("reward", "reward", is_higher_better=True), (-20.0, math.nan, -10.0, -15.0), -15.0, 0.0),
    ],
)
def test_a_target_is_reached_from_the_worse_side_and_need_not_be_measured_everywhere(
    metric: Metric, scores: tuple[float | None, ...], value: float, beyond: float
) -> None:
    measured: list[dict[str, float]] = [{} if score is None else {metric.name: score} for score in scores]
    made = run(*((10.0 * number, 5.0 - number, one) for number, one in enumerate(measured, start=1)))
    found = reached(made, Target(metric, value))
    assert found == Reached(20.0, 200.0, 10.0)  # half way between the first and the third measurement
    assert reached(made, Target(metric, beyond)) is None
    assert reached(run((10.0, 4.0)), Target(metric, value)) is None


def test_a_target_is_written_as_its_metric_is() -> None:
    assert str(Target(LOSS, 2.1)) == "loss 2.100" and str(Target(ACCURACY, 91.25)) == "accuracy 91.2"


def test_twice_the_weight_to_each_loss_is_an_efficiency_of_one_half() -> None:
    baseline = run((10, 4.0), (20, 3.0), (40, 2.0))
    slower = run((20, 4.0), (40, 3.0), (80, 2.0))
    assert weight_efficiency(baseline, slower) == 0.5
    assert weight_efficiency(slower, baseline) == 2.0
    assert weight_efficiency(baseline, baseline) == 1.0


def test_weight_efficiency_is_taken_at_the_lowest_loss_that_both_reached() -> None:
    assert weight_efficiency(run((10, 4.0), (20, 3.0), (40, 2.0)), run((10, 4.0), (40, 3.0))) == 0.5


def test_the_interval_is_that_of_students_t() -> None:
    # For -0.1, 0 and 0.1 the deviation is 0.1, and t = 4.302653 with two degrees of freedom.
    half = 4.302653 * 0.1 / math.sqrt(3)
    found = mean_interval([-0.1, 0.0, 0.1])
    assert (found.mean, found.low, found.high) == (pytest.approx(0.0), pytest.approx(-half), pytest.approx(half))
    ratios = ratio_interval([math.exp(-0.1), 1.0, math.exp(0.1)])
    assert ratios.mean == pytest.approx(1.0) and ratios.num == 3
    assert (ratios.low, ratios.high) == (pytest.approx(math.exp(-half)), pytest.approx(math.exp(half)))


def test_a_ratio_and_its_inverse_are_treated_alike() -> None:
    there, back = ratio_interval([0.5, 0.8]), ratio_interval([2.0, 1.25])
    assert back.mean == pytest.approx(1 / there.mean)
    assert (back.low, back.high) == (pytest.approx(1 / there.high), pytest.approx(1 / there.low))


@pytest.mark.parametrize("make", [mean_interval, ratio_interval])
def test_one_seed_has_no_interval_and_seeds_that_agree_a_narrow_one(make: type) -> None:
    one = make([0.9])
    assert one == Interval(pytest.approx(0.9), pytest.approx(0.9), pytest.approx(0.9), 1)
    assert not one.is_known
    assert make([0.9, 0.9]) == Interval(pytest.approx(0.9), pytest.approx(0.9), pytest.approx(0.9), 2)


def test_the_interval_covers_the_truth_in_95_percent_of_cases() -> None:
    import numpy as np

    samples = np.random.default_rng(1).normal(2.0, 0.5, (2000, 3))
    covered = [interval.low <= 2.0 <= interval.high for interval in map(mean_interval, samples.tolist())]
    assert 0.935 < sum(covered) / len(covered) < 0.965


def test_the_default_target_is_what_the_baseline_and_the_best_of_the_others_reached() -> None:
    baseline = [run((10, 4.0), (20, 2.0)), run((10, 4.0), (20, 2.2))]
    good, bad = [run((10, 4.0), (20, 2.1))], [run((10, 4.0), (20, 3.5))]
    assert common_target(baseline, [bad, good]) == Target(LOSS, 2.2, is_given=False)
    assert common_target(baseline, [bad]) == Target(LOSS, 3.5, is_given=False)
    assert common_target(baseline, []) == Target(LOSS, 2.2, is_given=False)
    assert common_target(baseline, [[run((10, math.nan))]]) == Target(LOSS, 2.2, is_given=False)
    assert common_target([run((10, math.nan))], [good]) is None
