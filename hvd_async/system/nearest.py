"""The valid word that a writer may have meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_ALMOST = 0.85
_ALIKE = 0.74
"""Of four letters one may differ, or two change places; so "steps" does not suggest "store"."""


def nearest(word: str, names: Iterable[str]) -> list[str]:
    """Return what may have been meant by `word`, which is none of `names`: a name that differs in a letter or so, otherwise up to
    three that have all of its words (`workers`: `max_workers`) or all of whose words it has (`max_epochs`: `epochs`), otherwise
    one that is spelled alike. `_` and `-` join words."""
    names = list(dict.fromkeys(names))
    if almost := difflib.get_close_matches(word, names, n=1, cutoff=_ALMOST):
        return almost
    words = _words(word)
    alike = [name for name in names if words and (words <= _words(name) or _words(name) <= words)]
    most = max((len(words & _words(name)) for name in alike), default=0)
    with_its_words = [name for name in alike if len(words & _words(name)) == most]
    return with_its_words[:3] or difflib.get_close_matches(word, names, n=1, cutoff=_ALIKE)


def meant(word: str, names: Iterable[str]) -> str:
    """Return `did you mean 'beam'?` with the nearest of `names`, or no text if none is near."""
    near = [repr(name) for name in nearest(word, names)]
    return f"did you mean {' or '.join(filter(None, (', '.join(near[:-1]), near[-1])))}?" if near else ""


def _words(name: str) -> set[str]:
    return {word for word in re.split("[_-]", name.lower()) if word}
