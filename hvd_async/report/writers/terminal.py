"""The short report for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from hvd_async.comparison.collection import Collection, runs_of
from hvd_async.comparison.results import Row, results
from hvd_async.report.answer import answer
from hvd_async.report.document import Cell, Table
from hvd_async.report.software import clock_note
from hvd_async.report.tables import SPEED_UP, quality_table, target_table
from hvd_async.report.unlike_runs import target_note, untuned_note, warnings_about
from hvd_async.system.printable import printable
from hvd_async.system.text_tables import aligned_table

_WIDTH = 120


def text_of(collection: Collection, rows: Sequence[Row] | None = None) -> str:
    """Return the answer and the main tables of each environment as text. `rows`: `results(collection)`, if known."""
    rows = results(collection) if rows is None else rows
    runs = runs_of(collection.entries)
    parts = [clock_note(runs), *(textwrap.fill(printable(warning), _WIDTH) for warning in warnings_about(runs))]
    for environment in collection.environments:
        own = [row for row in rows if row.environment == environment]
        said = answer(own, collection.baseline, collection.target)
        label = f"{environment}: " if len(collection.environments) > 1 else ""
        parts.append(textwrap.fill(printable(f"{label}{said.sentence}"), _WIDTH))
        parts.append(
            "\n".join(
                textwrap.fill(printable(note), _WIDTH, initial_indent="- ", subsequent_indent="  ") for note in said.notes
            )
        )
        if any(row.runs for row in own):
            parts.append(_table(own, collection))
    parts += [textwrap.fill(line, _WIDTH) for line in _below(collection, rows)]
    return "\n\n".join(part for part in parts if part) or "No run: there is nothing to compare."


def _below(collection: Collection, rows: Sequence[Row]) -> Iterator[str]:
    """Yield what one must know to read the tables."""
    if any(row.speed_up is not None and row.speed_up.is_known for row in rows):
        yield "In brackets: 95 % intervals by Student's t over seeds."
    yield target_note(collection)
    yield untuned_note(collection)


def _table(rows: Sequence[Row], collection: Collection) -> str:
    """Join the short columns of both tables of the report, most of them without their intervals."""
    tables = [quality_table(rows)]
    if collection.target is not None:
        tables.insert(0, target_table(rows, collection.target))
    columns: dict[str, list[str]] = {}
    for table in tables:
        for place, column in enumerate(table.columns):
            if column.is_short:
                columns.setdefault(column.name, _column(table, place))
    return aligned_table(list(zip(*columns.values(), strict=True)))


def _column(table: Table, place: int) -> list[str]:
    """Return the name and the cells of a column."""
    name = table.columns[place].name
    return [printable(name), *(_text(row[place], with_detail=name == SPEED_UP) for row in table.rows)]


def _text(cell: Cell, *, with_detail: bool) -> str:
    return printable(f"{cell.text} ({cell.detail})" if cell.detail and with_detail else cell.text)
