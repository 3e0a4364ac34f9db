"""How long something may last."""

from __future__ import annotations

import time

import pytest

from hvd_async.system.patience import Patience


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def looks(patience: Patience, clock: list[float], *steps: tuple[float, bool]) -> list[bool]:
    """Return the answers after each of some seconds, with what lasts then."""
    found = []
    for seconds, lasts in steps:
        clock[0] += seconds
        found.append(patience.is_over(lasts=lasts))
    return found


def test_it_is_over_when_it_has_lasted_too_long(clock: list[float]) -> None:
    assert looks(Patience(1.0, 0.5), clock, (0.5, True), (0.5, True), (0.5, True)) == [False, False, True]


def test_short_times_do_not_add_up(clock: list[float]) -> None:
    steps = [(0.5, True), (0.4, True), (0.5, False)] * 5
    assert not any(looks(Patience(1.0, 0.5), clock, *steps))


def test_a_pause_of_the_process_counts_as_one_look(clock: list[float]) -> None:
    assert looks(Patience(3.0, 0.5), clock, (1000.0, True), (1000.0, True), (1000.0, True)) == [False, False, False]
    assert looks(Patience(3.0, 0.5), clock, *[(1000.0, True)] * 4)[-1]
