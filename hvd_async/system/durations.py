"""Durations in hours, minutes and seconds."""

from __future__ import annotations


def clock_text(seconds: float, *, has_hours: bool = False) -> str:
    """Return `seconds` as `h:mm:ss`; below an hour as `m:ss`, unless `has_hours`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours or has_hours else f"{minutes}:{rest:02d}"
