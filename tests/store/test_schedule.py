"""Learning rates and N over versions, compared with values computed by hand."""

from __future__ import annotations

import pytest

from hvd_async.config import ScheduleConfig
from hvd_async.store.schedule import arrivals_needed, is_synchronous, rate_factor
from tests.store.stores import asynchronous


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # position                                               1    2    4    8    16
        (ScheduleConfig(warmup=4), [0.5, 1.0, 2.0, 2.0 * 0.5**0.5, 1.0]),
        (ScheduleConfig(warmup=0), [2.0, 2.0 * 0.5**0.5, 1.0, 2.0 * 0.125**0.5, 0.5]),
        (ScheduleConfig(kind="constant", warmup=4), [0.5, 1.0, 2.0, 2.0, 2.0]),
        (ScheduleConfig(kind="linear", warmup=4, total=12), [0.5, 1.0, 2.0, 1.0, 0.0]),
        (ScheduleConfig(kind="linear", total=8), [1.75, 1.5, 1.0, 0.0, 0.0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("unit", ["versions", "weight"])
def test_the_rate_follows_the_schedule(schedule: ScheduleConfig, unit: str, expected: list[float]) -> None:
    schedule = ScheduleConfig(**{**schedule.model_dump(), "unit": unit})
    positions = (1, 2, 4, 8, 16)
    if unit == "versions":
        rates = [2.0 * rate_factor(schedule, version=position, weight=999) for position in positions]
    else:
        rates = [2.0 * rate_factor(schedule, version=999, weight=position) for position in positions]
    assert rates == pytest.approx(expected)


def test_n_never_falls_below_one() -> None:
    assert arrivals_needed(asynchronous(arrivals_per_update="workers"), version=0, num_active=0) == 1
    assert arrivals_needed(asynchronous(arrivals_per_update=4, lockstep=True), version=0, num_active=0) == 1


def test_a_fixed_n_is_not_capped_outside_of_lock_step() -> None:
    assert arrivals_needed(asynchronous(arrivals_per_update=5), version=0, num_active=2) == 5


def test_in_lock_step_n_is_at_most_the_number_of_active_workers() -> None:
    strategy = asynchronous(arrivals_per_update=5, lockstep=True)
    assert [arrivals_needed(strategy, 0, num_active) for num_active in (7, 5, 2)] == [5, 5, 2]


def test_a_schedule_takes_the_last_entry_whose_version_is_reached() -> None:
    schedule = [{"version": 0, "arrivals": 1}, {"version": 2, "arrivals": 7}, {"version": 5, "arrivals": "workers"}]
    strategy = asynchronous(arrivals_per_update=schedule)
    assert [arrivals_needed(strategy, version, num_active=3) for version in range(7)] == [1, 1, 7, 7, 7, 3, 3]


def test_a_warm_start_is_synchronous_for_its_versions_alone() -> None:
    strategy = asynchronous(arrivals_per_update=1, synchronous_versions=2)
    assert [is_synchronous(strategy, version) for version in range(4)] == [True, True, False, False]
    assert [arrivals_needed(strategy, version, num_active=3) for version in range(4)] == [3, 3, 1, 1]


def test_lock_step_is_always_synchronous() -> None:
    assert is_synchronous(asynchronous(lockstep=True), version=10**9)
