"""The figures of a comparison, from runs whose figures are known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from hvd_async.comparison.ideal import Ideal
from hvd_async.comparison.runs import Run
from hvd_async.comparison.statistics import Interval, Reached
from hvd_async.comparison.target import Target
from hvd_async.config import StrategyConfig
from hvd_async.tasks.metric import Metric
from tests.comparison.made import ACCURACY, CONFIG, LOSS, PERPLEXITY, Rows, arrival, entry, run

FALLING = ((10.0, 4.0), (20.0, 2.0), (40.0, 1.0))


def slower(factor: float) -> Run:
    """Return the run with the same weight in `factor` times the seconds."""
    made = run(*FALLING)
    points = tuple(dataclasses.replace(point, seconds=point.seconds * factor) for point in made.points)
    return dataclasses.replace(made, points=points, seconds=made.seconds * factor)


def of_kind(made: Run, kind: str, **strategy: Any) -> Run:
    config = CONFIG.model_copy(update={"strategy": StrategyConfig(kind=kind, **strategy)})  # type: ignore[arg-type]  # one of its kinds
    return dataclasses.replace(made, config=config)


def exactly(mean: float, num: int) -> Interval:
    """Return the interval of measurements that agree."""
    near = pytest.approx(mean)
    return Interval(near, near, near, num)


def test_equal_variants_have_ratios_of_1(rows: Rows) -> None:
    base, other = rows(*(entry(name, seed, run(*FALLING)) for name in ("base", "other") for seed in (1, 2)))
    assert (base.is_baseline, other.is_baseline) == (True, False)
    for row in (base, other):
        assert row.speed_up == row.weight_efficiency == row.throughput == exactly(1.0, 2)
        assert row.reached == (Reached(15.0, 150.0, 7.5),) * 2 and row.num_reached == 2
        assert (row.seconds_to, row.weight_to, row.updates_to) == (exactly(15.0, 2), exactly(150.0, 2), exactly(7.5, 2))
        assert (row.final, row.difference) == ({"loss": exactly(1.0, 2)}, {})
        assert row.weight_per_second == exactly(10.0, 2) and row.steps_per_second == 0.5
        assert (row.num_diverged, row.rate, row.is_at_the_edge) == (0, None, False)


def test_the_speed_up_is_throughput_times_weight_efficiency(rows: Rows) -> None:
    # Twice as many batches to each loss, each in a quarter of the time.
    other = run((5.0, 4.0), (10.0, 2.0), (20.0, 1.0))
    points = tuple(dataclasses.replace(p, weight=4 * p.weight) for p in other.points)
    other = dataclasses.replace(other, points=points, weight=points[-1].weight)
    _, row = rows(entry("base", 1, run(*FALLING)), entry("other", 1, other))
    assert (row.weight_efficiency, row.throughput, row.speed_up) == (exactly(0.5, 1), exactly(4.0, 1), exactly(2.0, 1))


def test_runs_are_compared_seed_by_seed(rows: Rows) -> None:
    # Seeds differ more than variants do, but the ratio of each pair is 2.
    found = rows(
        entry("base", 1, slower(1.0)),
        entry("base", 2, slower(3.0)),
        entry("other", 2, slower(1.5)),
        entry("other", 1, slower(0.5)),
    )
    assert found[1].speed_up == found[1].throughput == exactly(2.0, 2)
    assert found[1].weight_efficiency == exactly(1.0, 2)
    assert found[1].seconds_to is not None and found[1].seconds_to.mean == pytest.approx((22.5 * 7.5) ** 0.5)


def test_a_pair_with_a_missing_run_does_not_count(rows: Rows) -> None:
    base, other = rows(
        *(entry("base", 1, slower(1.0)), entry("base", 2, None), entry("base", 3, slower(1.0))),
        *(entry("other", 1, None), entry("other", 2, slower(4.0)), entry("other", 3, slower(0.5))),
    )
    assert (len(other.entries), len(other.runs), other.num_reached) == (3, 2, 2)
    assert other.speed_up == exactly(2.0, 1) and not other.speed_up.is_known
    assert other.seconds_to is not None and other.seconds_to.mean == pytest.approx((60.0 * 7.5) ** 0.5)
    assert base.speed_up == exactly(1.0, 2)


def test_a_variant_without_any_run_has_no_figures(rows: Rows) -> None:
    _, row = rows(entry("base", 1, run(*FALLING)), entry("other", 1, None), entry("other", 2, None))
    assert row.runs == row.reached == () and len(row.entries) == 2 and row.num_reached == 0
    for name in (
        "seconds_to",
        "speed_up",
        "weight_efficiency",
        "throughput",
        "weight_per_second",
        "shares",
        "ideal",
    ):
        assert getattr(row, name) is None
    assert (row.steps_per_second, row.mean_staleness, row.share_of_ideal) == (None, None, None)
    assert row.final == row.difference == row.staleness == row.refused == row.worker_shares == {} and not row.is_synchronous


def test_without_a_run_of_the_baseline_nothing_is_compared(rows: Rows) -> None:
    _, row = rows(entry("base", 1, None), entry("other", 1, run(*FALLING)))
    assert row.speed_up is row.weight_efficiency is row.throughput is None
    assert row.seconds_to == exactly(15.0, 1) and row.final == {"loss": exactly(1.0, 1)}


def test_runs_that_reached_the_target_count_even_if_others_did_not(rows: Rows) -> None:
    base, other = rows(
        *(entry("base", 1, run(*FALLING)), entry("base", 2, run((10.0, 4.0), (20.0, 3.5)))),
        *(entry("other", 1, slower(0.5)), entry("other", 2, slower(0.5))),
    )
    assert (base.num_reached, other.num_reached) == (1, 2) and base.reached[1] is None
    assert other.speed_up == exactly(2.0, 1)  # of the one pair in which both did
    assert other.weight_efficiency is not None and other.weight_efficiency.num == 2  # up to the loss that both reached
    assert base.seconds_to == exactly(15.0, 1)


def test_without_any_run_at_the_target_weights_are_still_compared(rows: Rows) -> None:
    base, other = rows(entry("base", 1, run(*FALLING)), entry("other", 1, slower(0.5)), target=Target(LOSS, 0.5))
    for row in (base, other):
        assert row.num_reached == 0 and row.seconds_to is row.weight_to is row.updates_to is row.speed_up is None
    assert (other.weight_efficiency, other.throughput) == (exactly(1.0, 1), exactly(2.0, 1))


def test_without_a_target_nothing_is_reached(rows: Rows) -> None:
    _, row = rows(entry("base", 1, run(*FALLING)), entry("other", 1, run(*FALLING)), target=None)
    assert row.reached == (None,) and row.speed_up is None and row.throughput == exactly(1.0, 1)


def test_a_run_that_diverged_has_no_final_quality_but_keeps_the_time_to_a_target_reached_before(rows: Rows) -> None:
    diverged = run((10.0, 4.0, {"accuracy": 5.0}), (20.0, 2.0, {"accuracy": 20.0}), (30.0, math.nan, {"accuracy": 0.0}))
    nothing = run((10.0, math.nan))
    _, row = rows(
        *(entry("base", 1, run(*FALLING)), entry("base", 2, run(*FALLING))),
        *(entry("other", 1, diverged), entry("other", 2, nothing)),
    )
    assert (row.num_diverged, row.num_reached) == (2, 1)
    assert row.final == row.difference == {}
    assert row.speed_up == exactly(1.0, 1) and row.weight_efficiency == exactly(1.0, 1)
    assert row.throughput is not None and row.throughput.num == 2


def test_a_run_without_an_update_does_not_break_the_figures(rows: Rows) -> None:
    nothing = run((0.0, 4.0))
    for one, other in ((run(*FALLING), nothing), (nothing, run(*FALLING)), (nothing, nothing)):
        row = rows(entry("base", 1, one), entry("other", 1, other))[1]
        assert row.speed_up is row.weight_efficiency is row.throughput is None
        assert "loss" in row.final


@pytest.mark.parametrize("name", ["accuracy", "perplexity"])
def test_a_score_is_compared_between_runs_that_both_measured_it(rows: Rows, name: str) -> None:
    def with_scores(*scores: float | None) -> list[Run]:
        return [run((10.0, 4.0, {name: 1.0}), (20.0, 2.0, {} if each is None else {name: each})) for each in scores]

    base, other = rows(
        *(entry("base", seed, each) for seed, each in enumerate(with_scores(20.0, None, 22.0, math.nan))),
        *(entry("other", seed, each) for seed, each in enumerate(with_scores(21.5, 30.0, 23.5, 5.0))),
    )
    assert (base.final[name].mean, base.final[name].num) == (21.0, 2)
    assert base.difference == {name: exactly(0.0, 2)}
    assert other.final[name].num == 4 and other.final["loss"] == exactly(2.0, 4)
    assert other.difference == {name: exactly(1.5, 2)}


def test_weights_of_different_units_are_not_compared(rows: Rows) -> None:
    base, other = rows(entry("base", 1, run(*FALLING)), entry("other", 1, run(*FALLING, weight_unit="tokens")))
    assert other.weight_efficiency is other.throughput is None and other.speed_up == exactly(1.0, 1)
    assert other.weight_to == exactly(150.0, 1) and base.weight_efficiency == exactly(1.0, 1)


@pytest.mark.parametrize(("metric", "value"), [(ACCURACY, 15.0), (PERPLEXITY, 15.0)])
def test_the_target_may_be_any_metric(rows: Rows, metric: Metric, value: float) -> None:
    first, second = (10.0, 20.0) if metric.is_higher_better else (20.0, 10.0)
    base, other = rows(
        entry("base", 1, run((10.0, 4.0, {metric.name: first}), (20.0, 2.0, {metric.name: second}))),
        entry("other", 1, run((10.0, 4.0), (20.0, 2.0))),
        target=Target(metric, value),
    )
    assert base.reached == (Reached(15.0, 150.0, 7.5),) and other.reached == (None,)


def test_a_target_reached_at_the_first_measurement_gives_a_bound(rows: Rows) -> None:
    (row,) = rows(entry("base", 1, run(*FALLING)), target=Target(LOSS, 4.5))
    assert row.reached[0] is not None and row.reached[0].is_bound


def test_the_best_of_several_rates_is_shown(rows: Rows) -> None:
    entries = [
        entry("base", seed, slower(rate), rate=rate, is_chosen=is_chosen)
        for rate, seed, is_chosen in ((0.1, 1, False), (0.2, 1, True), (0.2, 2, True), (0.4, 1, False))
    ]
    highest = [entry("other", 1, slower(rate), rate=rate, is_chosen=rate == 0.4) for rate in (0.1, 0.2, 0.4)]
    base, other = rows(*entries, *highest, rates=(0.1, 0.4, 0.2))
    assert (base.rate, base.is_at_the_edge, len(base.runs)) == (0.2, False, 2)
    assert (other.rate, other.is_at_the_edge, len(other.runs)) == (0.4, True, 1)
    assert other.throughput == exactly(0.5, 1)


def test_a_single_rate_is_not_at_the_edge(rows: Rows) -> None:
    (row,) = rows(entry("base", 1, run(*FALLING), rate=0.1), rates=(0.1,))
    assert (row.rate, row.is_at_the_edge) == (0.1, False)


def test_environments_have_baselines_of_their_own(rows: Rows) -> None:
    found = rows(
        *(entry("base", 1, slower(1.0), "even"), entry("other", 1, slower(0.5), "even")),
        *(entry("base", 1, slower(4.0), "uneven"), entry("other", 1, slower(1.0), "uneven")),
    )
    assert [(row.environment, row.variant) for row in found] == [
        *(("even", "base"), ("even", "other")),
        *(("uneven", "base"), ("uneven", "other")),
    ]
    assert [row.speed_up for row in found] == [exactly(1.0, 1), exactly(2.0, 1), exactly(1.0, 1), exactly(4.0, 1)]


def test_counts_are_summed_and_staleness_is_averaged_over_arrivals(rows: Rows) -> None:
    one = run(*FALLING, mean_staleness=1.0, staleness={0: 1, 2: 1}, refused={"not_finite": 1}, num_steps=3, num_overrun=1)
    two = run(*FALLING, mean_staleness=0.0, staleness={0: 6}, refused={"not_finite": 2, "stale": 1}, num_steps=9)
    (row,) = rows(entry("base", 1, one), entry("base", 2, two))
    assert row.mean_staleness == 0.25 and row.staleness == {0: 7, 2: 1}
    assert row.refused == {"not_finite": 3, "stale": 1} and (row.num_overrun, row.num_steps) == (1, 12)
    assert row.steps_per_second == pytest.approx((2 / 40 + 6 / 40) / 2)


def test_shares_of_the_time_are_means_over_runs(rows: Rows) -> None:
    logs = {
        0: [arrival(0, 10.0, 10.0), arrival(1, 20.0, 20.0), arrival(0, 40.0, 20.0, push=2.0, wait=4.0, pull=2.0)],
        1: [arrival(0, 20.0, 20.0)],
    }
    (row,) = rows(entry("base", 1, run(*FALLING, num_workers=2)), entry("base", 2, run(*FALLING, num_workers=1)), logs=logs)
    assert row.shares is not None
    assert row.shares.computing == pytest.approx((50 / 80 + 20 / 40) / 2)
    assert row.shares.waiting == pytest.approx(4 / 80 / 2)
    assert row.shares.other == pytest.approx(1 - row.shares.computing - row.shares.waiting - 4 / 80 / 2)
    assert list(row.worker_shares) == [0, 1]
    assert row.worker_shares[0].computing == pytest.approx((30 / 40 + 20 / 40) / 2)
    assert row.worker_shares[1].computing == pytest.approx(20 / 40)  # from the one run that has a second worker


@pytest.mark.parametrize(
    ("kind", "strategy", "share"),
    [("horovod", {}, 0.5 / 0.5), ("async", {"lockstep": True}, 0.5 / 0.5), ("async", {}, 0.5 / 0.75)],
)
def test_the_ideal_is_that_of_the_strategy(rows: Rows, kind: str, strategy: dict[str, Any], share: float) -> None:
    # Steps take 2 and 4 seconds: 0.75 a second in total if no worker waits, otherwise 2 every 4 seconds.
    log = [arrival(0, 2.0, 2.0), arrival(1, 4.0, 4.0)]
    made = of_kind(run(*FALLING, num_workers=2), kind, **strategy)
    (row,) = rows(entry("base", 1, made), logs={0: log})
    assert row.ideal == Ideal(pytest.approx(0.5), pytest.approx(0.75)) and row.steps_per_second == 0.5
    assert row.share_of_ideal == pytest.approx(share)
    assert row.is_synchronous == (strategy != {} or kind == "horovod")


def test_the_ideal_is_computed_from_the_steps_of_all_runs(rows: Rows) -> None:
    logs = {0: [arrival(0, 2.0, 2.0)], 1: [arrival(0, 4.0, 4.0)]}
    (row,) = rows(entry("base", 1, run(*FALLING)), entry("base", 2, run(*FALLING)), logs=logs)
    assert row.ideal is not None and row.ideal.asynchronous == pytest.approx(1 / 3)
