"""The report as Markdown, to be read beside code. Figures are files. Pure."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from hvd_async.report.document import Block, Cell, Code, Document, Figure, Fold, Items, PageSection, Table, Terms, Text
from hvd_async.system.printable import printable, printable_lines
from hvd_async.system.text_tables import markdown_table


def markdown(document: Document) -> str:
    """Return the text of the file."""
    parts = [f"# {_escape(document.title)}", *_blocks(document.lead, 2), *_blocks(document.sections, 2)]
    return "\n\n".join(parts) + "\n"


def _blocks(blocks: Sequence[Block], level: int) -> list[str]:
    return [text for block in blocks for text in _block(block, level)]


def _block(block: Block, level: int) -> list[str]:
    """Return the lines of a block. `level`: of headings in it."""
    if isinstance(block, PageSection):
        return [f"{'#' * level} {_escape(block.title)}", *_blocks(block.blocks, level + 1)]
    if isinstance(block, Fold):
        inside = _blocks(block.blocks, level)
        return [f"<details>\n<summary>{html.escape(printable(block.summary))}</summary>", *inside, "</details>"]
    if isinstance(block, Text):
        text = _escape(f"{block.label}: {block.text}" if block.label else block.text)
        return [f"**{text}**" if block.kind == "answer" else text]
    if isinstance(block, Items):
        return ["\n".join(f"- {_escape(item)}" for item in block.items)]
    if isinstance(block, Terms):
        return ["\n".join(f"- **{_escape(term)}**: {_escape(text)}" for term, text in block.terms)]
    if isinstance(block, Table):
        return [f"{_escape(block.caption)}:", _table(block)]
    if isinstance(block, Figure):
        reading = [f"**{_escape(block.reading)}**"] if block.reading else []
        return [*reading, f"![{_escape(block.description)}](figures/{block.name}.svg)", f"*{_escape(block.caption)}*"]
    return [_code(block)]


def _table(table: Table) -> str:
    rows = [[_escape(column.name) for column in table.columns], *([_cell(cell) for cell in row] for row in table.rows)]
    return markdown_table(rows, [place for place, column in enumerate(table.columns) if not column.is_number])


def _cell(cell: Cell) -> str:
    text = f"[{_escape(cell.text)}]({cell.href})" if cell.href else _escape(cell.text)
    return f"{text} ({_escape(cell.detail)})" if cell.detail else text


def _code(block: Code) -> str:
    """Return the text fenced by more backticks than it has in a row."""
    longest = max(map(len, re.findall("`+", block.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{printable_lines(block.text).rstrip()}\n{fence}"


def _escape(text: str) -> str:
    """Return text without special meaning in Markdown, in one line."""
    text = re.sub(r"([\\`*\[\]<|])", r"\\\1", printable(" ".join(text.split())))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
