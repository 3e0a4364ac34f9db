"""When variants come near to the best scores of the baseline."""

from __future__ import annotations

import dataclasses

import pytest

from hvd_async.comparison.milestones import Passage, best_of, milestones
from hvd_async.comparison.results import Row
from hvd_async.tasks.metric import Metric
from tests.comparison.made import ACCURACY, LOSS, Rows, entry, run


def passage(metric: Metric, rows: list[Row], variant: str, missing: float) -> Passage:
    best = best_of(metric, rows)
    assert best is not None
    (found,) = (each for each in milestones(metric, best, rows) if (each.row.variant, each.missing) == (variant, missing))
    return found


def test_a_milestone_lies_before_the_mean_of_the_best_scores_of_the_baseline(rows: Rows) -> None:
    base = run((10, 3.0, {"accuracy": 20.0}), (20, 1.0, {"accuracy": 60.0}), (30, 2.0, {"accuracy": 40.0}))
    made = rows(entry("base", 1, base), entry("base", 2, run((10, 3.0, {"accuracy": 40.0}), (20, 2.0, {"accuracy": 40.0}))))
    assert (best_of(LOSS, made), best_of(ACCURACY, made)) == (1.5, 50.0)
    assert [each.target.value for each in milestones(LOSS, 1.5, made)] == pytest.approx([1.65, 1.575, 1.515])
    assert [each.target.value for each in milestones(ACCURACY, 50.0, made)] == pytest.approx([45.0, 47.5, 49.5])
    found = passage(ACCURACY, made, "base", 0.10)
    assert found.num_reached == 1 and found.seconds_to is not None
    assert found.seconds_to.mean == pytest.approx(10 + 10 * 25 / 40)  # the second run never comes so far


def test_ratios_are_those_of_a_seed_in_which_both_came_so_far(rows: Rows) -> None:
    fast = dataclasses.replace(run((5, 3.0), (10, 1.0)), points=run((10, 3.0), (20, 1.0)).points)
    fast = dataclasses.replace(fast, points=tuple(dataclasses.replace(p, seconds=p.seconds / 2) for p in fast.points))
    made = rows(
        *(entry("base", seed, run((10, 3.0), (20, 1.0))) for seed in (1, 2)),
        *(entry("fast", 1, fast), entry("fast", 2, run((10, 3.0), (20, 2.0)))),
        *(entry("gone", 1, None), entry("gone", 2, None)),
    )
    found = passage(LOSS, made, "fast", 0.01)
    assert found.num_reached == 1 and found.speed_up is not None and found.weight_efficiency is not None
    assert (found.speed_up.mean, found.weight_efficiency.mean) == (pytest.approx(2.0), pytest.approx(1.0))
    gone = passage(LOSS, made, "gone", 0.01)
    assert (gone.num_reached, gone.seconds_to, gone.speed_up) == (0, None, None)


@pytest.mark.parametrize("loss", [0.0, 0.0004, -1.0, float("nan")])
def test_scores_without_a_positive_best_have_no_milestones(rows: Rows, loss: float) -> None:
    made = rows(entry("base", 1, run((10, 3.0), (20, loss))) if loss == loss else entry("base", 1, None))
    assert best_of(LOSS, made) is None
