"""Text from outside, made fit to be shown: names of files, tensors and variants may contain anything."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` as one line that a terminal, a log or a page shows unchanged; other characters appear as Python's
    escapes.

    A newline would begin a line that looks like one of ours; an escape sequence would colour, hide or replace text.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def printable_lines(text: str) -> str:
    """Return text of several lines, each as `printable` returns it."""
    return "\n".join(printable(line.replace("\t", "    ")) for line in text.split("\n"))


def shortened(value: object, limit: int = 200) -> str:
    """Return the representation of `value`, without its middle if it is long."""
    text = printable(repr(value))
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}"


def spreadsheet_cell(text: str) -> str:
    """Return `text` as a cell of a CSV file that spreadsheets read as text, with an apostrophe if it begins like a
    formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
