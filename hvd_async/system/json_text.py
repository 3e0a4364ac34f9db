"""JSON from files, which may be damaged or made to harm."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """What `text` says. Raises `ValueError` for anything but JSON, whatever its depth and the length of its numbers."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
