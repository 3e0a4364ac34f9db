"""Numbers of things, and lists of names, as sentences have them. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def plural(number: int, noun: str, nouns: str = "") -> str:
    """Return text such as `1 seed` or `3 seeds`. `nouns`: the plural of `noun`, if not with an `s`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {nouns or f'{noun}s'}"


def and_listed(names: Sequence[str]) -> str:
    """Return text such as `a, b and c`, of at least one name."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
