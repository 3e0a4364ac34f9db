"""JSON from files, which may be damaged or malicious."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Return the value of `text`. Raises `ValueError` for anything but JSON, whatever its depth and the length of its
    numbers."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
