"""Tables of text: aligned for a terminal, or as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned_table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,), *, has_rule: bool = True) -> str:
    """Return `rows`, the first of which is the head, as aligned text: columns in `left` to the left, others to the right.

    `has_rule`: put a line of dashes below the head.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        [
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    if has_rule:
        lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(line).rstrip() for line in lines)


def markdown_table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Return `rows`, the first of which is the head, as a Markdown table. Cells are not escaped."""
    rule = ["---" if column in left else "---:" for column in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])
