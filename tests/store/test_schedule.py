"""Learning rates and N over versions, compared with values computed by hand."""

from __future__ import annotations

import math

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
        # At 8 half of the way from 4 to 12; without warm-up, (1 + cos(pi / 8)) and so on.
        (ScheduleConfig(kind="cosine", warmup=4, total=12), [0.5, 1.0, 2.0, 1.0, 0.0]),
        (ScheduleConfig(kind="cosine", warmup=4, total=12, final=0.1), [0.5, 1.0, 2.0, 1.1, 0.2]),
        (ScheduleConfig(kind="cosine", total=8), [1 + 0.9238795325112867, 1 + 0.5**0.5, 1.0, 0.0, 0.0]),
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


@pytest.mark.parametrize(("warmup", "total", "final"), [(0, 1000, 0.0), (100, 1500, 0.25), (7, 8, 0.5), (3, 10**15, 0.01)])
def test_the_cosine_agrees_with_its_formula_and_never_rises(warmup: int, total: int, final: float) -> None:
    schedule = ScheduleConfig(kind="cosine", unit="weight", warmup=warmup, total=total, final=final)
    positions = [warmup + (total - warmup) * part // 500 for part in range(501)]
    found = [rate_factor(schedule, 1, position) for position in positions]
    wanted = [
        final + (1 - final) * (1 + math.cos(math.pi * (position - warmup) / (total - warmup))) / 2 for position in positions
    ]
    assert found == pytest.approx(wanted, rel=0, abs=1e-15)
    assert found == sorted(found, reverse=True) and found[-1] == rate_factor(schedule, 1, 2 * total) == final


def test_the_cosine_has_the_bits_of_sums_and_products_alone() -> None:
    """A fixed trace: `math.cos` may differ in its last bit between processors."""
    schedule = ScheduleConfig(kind="cosine", total=7, final=0.1)
    assert [rate_factor(schedule, version, 0).hex() for version in range(1, 8)] == [
        "0x1.e92ee7f9b8332p-1",
        "0x1.a940865f22b05p-1",
        "0x1.4cde6b323749fp-1",
        "0x1.cca99001f7d28p-2",
        "0x1.13e559a82105cp-2",
        "0x1.28112ce5ec002p-3",
        "0x1.999999999999ap-4",
    ]


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
