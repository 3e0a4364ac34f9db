"""The elements of a report, whether it is written as HTML or as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Cell:
    """A cell of a table. `detail`: small print after `text`, such as an interval. `href`: link target of `text`, relative
    to the report."""

    text: str
    detail: str = ""
    href: str = ""
    is_fault: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table. `is_number`: its cells are right-aligned. `is_short`: also in the short report for a terminal."""

    name: str
    is_number: bool = True
    is_short: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph. `kind`: its style. `label`: a short heading before it."""

    block: ClassVar[str] = "text"
    text: str
    kind: Literal["plain", "answer", "small"] = "plain"
    label: str = ""


@dataclass(frozen=True)
class Items:
    """A list."""

    block: ClassVar[str] = "items"
    items: Sequence[str]


@dataclass(frozen=True)
class Terms:
    """Terms and their meanings."""

    block: ClassVar[str] = "terms"
    terms: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table. The first cell of each row is its heading."""

    block: ClassVar[str] = "table"
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Figure:
    """A drawing. `reading`: one sentence on what to see in it, which may be empty; `caption`: what is drawn, and how. `svg`: a
    whole file. `description`: for readers who cannot see it."""

    block: ClassVar[str] = "figure"
    name: str
    reading: str
    caption: str
    description: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Code:
    """Text that is shown verbatim."""

    block: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks that are shown on request."""

    block: ClassVar[str] = "fold"
    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class PageSection:
    """Blocks and sections below a heading. `anchor` is unique in the document."""

    block: ClassVar[str] = "section"
    title: str
    anchor: str
    blocks: Sequence[Block]


Block = Text | Items | Terms | Table | Figure | Code | Fold | PageSection


@dataclass(frozen=True)
class Document:
    """A report. `lead`: blocks before the table of contents."""

    title: str
    lead: Sequence[Block]
    sections: Sequence[PageSection]

    def figures(self) -> Iterator[Figure]:
        """Yield all figures, in their order."""
        yield from _figures([*self.lead, *self.sections])


def _figures(blocks: Sequence[Block]) -> Iterator[Figure]:
    for block in blocks:
        if isinstance(block, Figure):
            yield block
        elif isinstance(block, (Fold, PageSection)):
            yield from _figures(block.blocks)


def slugs(names: Sequence[str]) -> dict[str, str]:
    """Return for each of `names` (which differ) a distinct text for an anchor or a file name."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "unnamed"
        number, slug = 1, plain
        while slug in found.values():
            number += 1
            slug = f"{plain}-{number}"
        found[name] = slug
    return found
