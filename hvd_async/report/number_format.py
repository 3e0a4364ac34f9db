"""Numbers in the form in which a report shows them. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable

from hvd_async.comparison.statistics import Interval

NOTHING = "–"


def seconds(value: float) -> str:
    """Format seconds with three digits, or with all digits before the point."""
    return _digits(value)


def count(value: float) -> str:
    """Format a weight, updates or steps."""
    return f"{value:,.0f}" if math.isfinite(value) else str(value)


def rate(value: float) -> str:
    """Format a number per second."""
    return _digits(value)


def ratio(value: float) -> str:
    """Format a ratio with two decimals, or with three digits if it is small."""
    return f"{value:,.2f}" if abs(value) >= 0.095 or not value else f"{value:.2g}"


def percent(value: float) -> str:
    """Format a share from 0 to 1 as a percentage."""
    return f"{100.0 * value:.1f} %"


def staleness(value: float) -> str:
    """Format staleness in versions."""
    return f"{value:.2f}"


def span(interval: Interval | None, write: Callable[[float], str]) -> str:
    """Return both ends as `write` formats them, such as `0.66 to 0.77`; empty without an interval."""
    return "" if interval is None or not interval.is_known else f"{write(interval.low)} to {write(interval.high)}"


def singular(unit: str) -> str:
    """Return the unit of weight `unit`, a plural, without its `s`: `token` of `tokens`."""
    return unit.removesuffix("s")


def inverse(interval: Interval) -> Interval:
    """Return the interval of the inverse ratio."""
    return Interval(1.0 / interval.mean, 1.0 / interval.high, 1.0 / interval.low, interval.num)


def _digits(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    decimals = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2 if abs(value) >= 0.9995 or not value else None
    return f"{value:.3g}" if decimals is None else f"{value:,.{decimals}f}"
