"""Numbers in the form in which a report shows them. Pure."""

from __future__ import annotations

import math

from hvd_async.comparison.statistics import Interval

NOTHING = "–"


def seconds(value: float) -> str:
    """Format seconds with three digits, or with all digits before the point."""
    return _digits(value)


def count(value: float) -> str:
    """Format tokens, updates or steps."""
    return f"{value:,.0f}" if math.isfinite(value) else str(value)


def rate(value: float) -> str:
    """Format a number per second."""
    return _digits(value)


def ratio(value: float) -> str:
    """Format a ratio with two decimals, or with three digits if it is small."""
    return f"{value:,.2f}" if abs(value) >= 0.095 or not value else f"{value:.2g}"


def loss(value: float) -> str:
    """Format a loss in nats per token."""
    return f"{value:.3f}"


def bleu(value: float) -> str:
    """Format BLEU with one decimal, as it is quoted."""
    return f"{value:.1f}"


def difference(value: float) -> str:
    """Format a difference in BLEU, always with a sign."""
    return f"{value:+.1f}"


def percent(value: float) -> str:
    """Format a share from 0 to 1 as a percentage."""
    return f"{100.0 * value:.1f} %"


def staleness(value: float) -> str:
    """Format staleness in versions."""
    return f"{value:.2f}"


def span(interval: Interval | None, form: str) -> str:
    """Return both ends, such as `0.66 to 0.77`; empty without an interval. `form`: the name of a function of this module.

    A loss or a BLEU score is not below 0, whatever Student's t gives for few seeds.
    """
    if interval is None or not interval.is_known:
        return ""
    write = globals()[form]
    low = interval.low if form == "difference" else max(0.0, interval.low)
    return f"{write(low)} to {write(interval.high)}"


def plural(number: int, noun: str) -> str:
    """Return text such as `1 seed` or `3 seeds`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def inverse(interval: Interval) -> Interval:
    """Return the interval of the inverse ratio."""
    return Interval(1.0 / interval.mean, 1.0 / interval.high, 1.0 / interval.low, interval.num)


def _digits(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    decimals = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2 if abs(value) >= 0.9995 or not value else None
    return f"{value:.3g}" if decimals is None else f"{value:,.{decimals}f}"
