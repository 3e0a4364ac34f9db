"""JSON: reading from files, which may be damaged or malicious, and numbers to be written."""

from __future__ import annotations

import json
from typing import Any

# Above it not every whole number is a double.
_MOST_EXACT = 2**53


def plain_number(number: float) -> float:
    """Return a whole `number` as an int, which JSON writes without a decimal point; any other number unchanged."""
    return int(number) if abs(number) <= _MOST_EXACT and float(number).is_integer() else number


def parse_json(text: str | bytes) -> Any:
    """Return the value of `text`. Raises `ValueError` for anything but JSON, whatever its depth and the length of its
    numbers."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
