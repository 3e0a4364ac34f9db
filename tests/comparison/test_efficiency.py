"""Token efficiency, on runs whose answer is known."""

from __future__ import annotations

import math

import pytest

from hvd_async.comparison.efficiency import Interval, interval, token_efficiency, tokens_to
from hvd_async.comparison.runs import Point, RunResult


def run(*points: tuple[int, float]) -> RunResult:
    """A run that had the loss `points[i][1]` after `points[i][0]` tokens."""
    measured = tuple(Point(float(tokens), tokens, loss, None) for tokens, loss in points)
    return RunResult("run", "run", 1.0, points[-1][0], 1, 0.0, measured)


def test_between_two_points_the_tokens_are_read_off_the_line() -> None:
    falling = run((100, 4.0), (200, 3.0), (400, 2.0))
    assert tokens_to(falling, 3.5) == 150.0
    assert tokens_to(falling, 3.0) == 200.0
    assert tokens_to(falling, 2.5) == 300.0
    assert tokens_to(falling, 4.5) == 100.0  # before the first measurement nothing is known
    assert tokens_to(falling, 1.9) is None


def test_a_loss_that_is_reached_twice_counts_when_it_was_first() -> None:
    assert tokens_to(run((100, 4.0), (200, 2.0), (300, 3.0), (400, 1.0)), 2.5) == 175.0


def test_a_point_that_diverged_is_passed_over() -> None:
    assert tokens_to(run((100, 4.0), (200, math.nan), (300, 2.0)), 3.0) == 200.0


def test_half_as_good_tokens() -> None:
    baseline = run((100, 4.0), (200, 3.0), (400, 2.0))
    slower = run((200, 4.0), (400, 3.0), (800, 2.0))
    assert token_efficiency(baseline, slower) == 0.5
    assert token_efficiency(slower, baseline) == 2.0
    assert token_efficiency(baseline, baseline) == 1.0


def test_the_loss_is_the_lowest_that_both_reached() -> None:
    baseline = run((100, 4.0), (200, 3.0), (400, 2.0))
    never_there = run((100, 4.0), (400, 3.0))
    assert token_efficiency(baseline, never_there) == 0.5


def test_the_interval_is_students() -> None:
    # Three logarithms -0.1, 0 and 0.1: deviation 0.1, t = 4.303 with two degrees of freedom.
    found = interval([math.exp(-0.1), 1.0, math.exp(0.1)])
    half = 4.303 * 0.1 / math.sqrt(3)
    assert found.mean == pytest.approx(1.0)
    assert (found.low, found.high) == (pytest.approx(math.exp(-half)), pytest.approx(math.exp(half)))
    assert found.num == 3


def test_one_seed_has_no_interval() -> None:
    assert interval([0.9]) == Interval(pytest.approx(0.9), pytest.approx(0.9), pytest.approx(0.9), 1)
    assert str(interval([0.9])) == "0.900"


def test_seeds_that_agree_have_a_narrow_one() -> None:
    assert str(interval([0.9, 0.9])) == "0.900 (0.900 to 0.900)"


def test_with_many_seeds_it_is_the_normals() -> None:
    ratios = [math.exp(0.01 * (-1) ** number) for number in range(40)]
    found = interval(ratios)
    assert math.log(found.high) == pytest.approx(1.96 * 0.01 * math.sqrt(40 / 39) / math.sqrt(40), rel=1e-6)
