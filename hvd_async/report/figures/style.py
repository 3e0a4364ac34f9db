"""The look of each variant and each activity in all figures: distinguished by colour (Okabe and Ito's palette, which the
colour-blind can distinguish) and by lines, markers and hatches. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BLACK = "#000000"
GRAY = "#6b6b6b"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # their yellow cannot be seen on white
_LINES: tuple[Any, ...] = ("--", "-.", (0, (1, 1)), (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (8, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

ACTIVITIES = {
    "computing": "#0072b2",
    "pushing": "#e69f00",
    "waiting": "#e0e0e0",
    "pulling": "#009e73",
    "updating": "#d55e00",
    "other": "#ffffff",
}
HATCHES = {"computing": "", "pushing": "//", "waiting": "..", "pulling": "\\\\", "updating": "xx", "other": ""}


@dataclass(frozen=True)
class Style:
    """Look of a variant. `line`: as matplotlib's `linestyle` takes it."""

    colour: str
    line: Any
    marker: str


def styles(variants: Sequence[str], baseline: str) -> dict[str, Style]:
    """Return the look of each variant; the baseline's is always the same."""
    others = [variant for variant in dict.fromkeys(variants) if variant != baseline]
    found = {baseline: Style(BLACK, "-", "o")}
    for number, variant in enumerate(others):
        # Lengths without a common divisor, so that a combination of the three repeats only after many variants.
        marker = _MARKERS[(number + 1) % len(_MARKERS)]
        found[variant] = Style(_COLOURS[number % len(_COLOURS)], _LINES[number % len(_LINES)], marker)
    return found


def short(name: str, width: int = 34) -> str:
    """Return `name` in at most two lines, each at most `width` letters wide."""
    lines = textwrap.wrap(name, width, max_lines=2, placeholder="…", break_long_words=True)
    return "\n".join(lines)
