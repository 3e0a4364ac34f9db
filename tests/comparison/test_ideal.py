"""The best rate that step times allow, in cases that can be computed by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from hvd_async.comparison.ideal import expected_maximum, ideal


def test_even_workers_with_equal_steps_have_nothing_to_gain() -> None:
    found = ideal({0: [0.5, 0.5], 1: [0.5]})
    assert found is not None
    assert (found.synchronous, found.asynchronous, found.speed_up) == (4.0, 4.0, 1.0)


def test_one_worker_at_half_speed_halves_the_synchronous_rate_alone() -> None:
    found = ideal({0: [2.0], 1: [1.0], 2: [1.0], 3: [1.0]})
    assert found is not None
    assert (found.synchronous, found.asynchronous) == (2.0, 3.5)


def test_the_expected_maximum_is_the_mean_over_all_combinations() -> None:
    samples = [[1.0, 2.0, 4.0], [3.0, 0.5], [2.0, 2.0, 5.0, 0.0]]
    combinations = [max(each) for each in itertools.product(*samples)]
    assert expected_maximum(samples) == pytest.approx(sum(combinations) / len(combinations))


def test_the_expected_maximum_of_exponential_steps_is_the_harmonic_number() -> None:
    draws = np.random.default_rng(0).exponential(1.0, (4, 20000))
    assert expected_maximum(draws.tolist()) == pytest.approx(1 + 1 / 2 + 1 / 3 + 1 / 4, rel=0.02)


@pytest.mark.parametrize("steps", [{}, {0: [1.0], 1: []}, {0: [0.0, 0.0]}])
def test_without_step_times_there_is_no_ideal(steps: dict[int, list[float]]) -> None:
    assert ideal(steps) is None


def test_the_mean_step_counts_and_not_the_mean_rate() -> None:
    found = ideal({0: [1.0, 3.0]})
    assert found is not None and math.isclose(found.asynchronous, 0.5) and math.isclose(found.synchronous, 0.5)
