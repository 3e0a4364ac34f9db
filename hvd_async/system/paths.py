"""Paths as users write them, in a configuration and on the command line: the same rules for all."""

from __future__ import annotations

import os
import re

# Characters that would begin a line or a command in a terminal, and bytes that are not UTF-8, which our files cannot
# hold.
_ODD = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def path_of(text: str) -> str:
    """Return the path that `text` means, with `~` or `~user` at its beginning replaced by that home folder. Raises
    `ValueError`."""
    if not text:
        raise ValueError("got an empty path, expected a file or folder; the current folder is '.'")
    if _ODD.search(text):
        raise ValueError(f"got {text!r}, expected a path in UTF-8 without control characters; rename it")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(f"got {text!r}, whose home folder is unknown; write it out, or './{text}' for a name with a tilde")
    return expanded
