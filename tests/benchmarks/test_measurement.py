"""Medians, turns, and figures with their limits. Tests bring their own clock."""

from __future__ import annotations

import itertools
import json

import pytest

from hvd_async.benchmarks.measurement import (
    BenchFigure,
    BenchTarget,
    Effort,
    Limit,
    Spread,
    duration,
    rate,
    take_turns,
    timed,
)


class ManualClock:
    """A clock that only `advance` moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], Spread(3.0, 3.0, 3.0, 1)),
        ([3.0, 1.0, 2.0], Spread(2.0, 1.0, 3.0, 3)),  # for fewer than 4 values, the extremes
        ([5.0, 1.0, 2.0, 3.0, 4.0], Spread(3.0, 2.0, 4.0, 5)),
    ],
)
def test_a_spread_is_median_and_quartiles(values: list[float], expected: Spread) -> None:
    assert Spread.of(values) == expected


def test_competitors_take_turns_and_warm_ups_do_not_count() -> None:
    order: list[str] = []
    seconds = itertools.count(1)

    def run(name: str) -> float:
        order.append(name)
        return float(next(seconds))

    spreads = take_turns(lambda: {"a": run("a"), "b": run("b")}, Effort(3, 1000.0, warm_ups=1), ManualClock())
    assert "".join(order) == "abababab"
    assert spreads == {"a": Spread.of([3.0, 5.0, 7.0]), "b": Spread.of([4.0, 6.0, 8.0])}


@pytest.mark.parametrize(("seconds", "turns"), [(100.0, 5), (4.0, 3), (3.9, 2), (0.1, 1)])
def test_turns_end_at_the_limit_of_seconds_but_not_before_the_first(seconds: float, turns: int) -> None:
    clock = ManualClock()

    def turn() -> dict[str, float]:
        clock.advance(1.0)
        return {"a": 1.0}

    assert take_turns(turn, Effort(5, seconds, warm_ups=1), clock)["a"].count == turns


def test_timed_returns_the_difference_on_the_clock() -> None:
    clock = ManualClock()
    assert timed(lambda: clock.advance(2.5), clock) == 2.5


def test_a_duration_is_compared_with_its_limit_in_milliseconds() -> None:
    figure = duration("push", Spread(0.010, 0.009, 0.012, 7), ("memcpy", Spread(0.008, 0.007, 0.009, 7)))
    assert figure.value.median == pytest.approx(10.0) and figure.unit == "ms"
    assert figure.limit is not None and figure.limit.spread.high == pytest.approx(9.0)
    assert figure.ratio == pytest.approx(0.8)  # the limit is faster


def test_a_higher_rate_is_better() -> None:
    figure = rate("3 workers", Spread.of([27.0]), "steps/s", ("3 times 1", Spread.of([30.0])))
    assert figure.ratio == pytest.approx(0.9)


def judged() -> list[tuple[BenchFigure, bool | None]]:
    value, limit = Spread.of([2.0]), Limit("limit", Spread.of([1.8]))
    cases: list[tuple[BenchTarget | None, bool | None]] = [
        (None, None),
        (BenchTarget("ratio at least", 0.9), True),
        (BenchTarget("ratio at least", 0.91), False),
        (BenchTarget("value at most", 2.0), True),
        (BenchTarget("value at most", 1.9), False),
    ]
    return [(BenchFigure("f", value, "ms", limit, 0.9, target), met) for target, met in cases]


@pytest.mark.parametrize(("figure", "met"), judged())
def test_a_target_is_met_or_not(figure: BenchFigure, met: bool | None) -> None:
    assert figure.met is met
    assert figure.to_json()["met"] is met


@pytest.mark.parametrize("figure", [figure for figure, _ in judged()] + [BenchFigure("bare", Spread.of([1.0]), "%")])
def test_figures_survive_the_way_through_json(figure: BenchFigure) -> None:
    assert BenchFigure.from_json(json.loads(json.dumps(figure.to_json()))) == figure
