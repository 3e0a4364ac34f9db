"""Paths as people write them, in a configuration and on the command line: the same rules for all."""

from __future__ import annotations

import os
import re

# What would begin a line or a command of its own in a terminal, and bytes that are not UTF-8, which no file of ours can hold.
_ODD = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def path_of(text: str) -> str:
    """The path that `text` means: with a home folder in place of `~` or `~user` at its beginning. Raises `ValueError`."""
    if not text:
        raise ValueError("got an empty path, expected that of a file or folder; the current folder is '.'")
    if _ODD.search(text):
        raise ValueError(f"got {text!r}, expected a path in UTF-8 without control characters; rename what has it")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(
            f"got {text!r}, whose home folder is not known; write it out, or './{text}' for a name with a tilde"
        )
    return expanded
