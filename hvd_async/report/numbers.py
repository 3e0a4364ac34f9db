"""Numbers as a reader wants them. Pure."""

from __future__ import annotations

import math

from hvd_async.comparison.statistics import Interval

NOTHING = "–"


def seconds(value: float) -> str:
    """Three digits, or all before the point."""
    return _digits(value)


def count(value: float) -> str:
    """Tokens, updates, steps."""
    return f"{value:,.0f}" if math.isfinite(value) else str(value)


def rate(value: float) -> str:
    """So many per second."""
    return _digits(value)


def ratio(value: float) -> str:
    """Two decimals; three digits of small ones."""
    return f"{value:,.2f}" if abs(value) >= 0.095 or not value else f"{value:.2g}"


def loss(value: float) -> str:
    """In nats per token."""
    return f"{value:.3f}"


def bleu(value: float) -> str:
    """One decimal, as it is quoted."""
    return f"{value:.1f}"


def difference(value: float) -> str:
    """As `bleu`, always with a sign."""
    return f"{value:+.1f}"


def percent(value: float) -> str:
    """Of a share, 0 to 1."""
    return f"{100.0 * value:.1f} %"


def staleness(value: float) -> str:
    """In versions."""
    return f"{value:.2f}"


def span(interval: Interval | None, form: str) -> str:
    """The two ends, such as `0.66 to 0.77`; nothing where there is no interval. `form`: the name of a function of this file.

    A loss or a BLEU score is not below 0, whatever Student's t says of few seeds."""
    if interval is None or not interval.is_known:
        return ""
    write = globals()[form]
    low = interval.low if form == "difference" else max(0.0, interval.low)
    return f"{write(low)} to {write(interval.high)}"


def plural(number: int, noun: str) -> str:
    """Such as `1 seed`, `3 seeds`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def inverse(interval: Interval) -> Interval:
    """Of a ratio."""
    return Interval(1.0 / interval.mean, 1.0 / interval.high, 1.0 / interval.low, interval.num)


def _digits(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    decimals = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2 if abs(value) >= 0.9995 or not value else None
    return f"{value:.3g}" if decimals is None else f"{value:,.{decimals}f}"
