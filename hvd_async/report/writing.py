"""The files of a report."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from hvd_async.atomic import write_file
from hvd_async.comparison.collection import Collection
from hvd_async.comparison.results import Row, results
from hvd_async.report.contents import contents
from hvd_async.report.csv_files import runs_csv, variants_csv
from hvd_async.report.html import html
from hvd_async.report.markdown import markdown
from hvd_async.report.timeline import Window


def write_report(
    collection: Collection, output: pathlib.Path, window: Window | None = None, rows: Sequence[Row] | None = None
) -> list[pathlib.Path]:
    """Write the report of `collection` into `output`; the paths of its files, `report.html` first.

    The same runs give the same bytes. `window`: of the timelines; absent, some steps in the middle of each run. `rows`: its
    `results`, where somebody has them already. Raises
    `DataError` where a run's event log is damaged, or a file cannot be written.
    """
    rows = results(collection) if rows is None else rows
    document = contents(collection, rows, output, window)
    files = {
        "report.html": html(document).encode(),
        "report.md": markdown(document).encode(),
        "runs.csv": runs_csv(collection, output).encode(),
        "variants.csv": variants_csv(rows).encode(),
    }
    for figure in document.figures():
        files[f"figures/{figure.name}.svg"] = figure.svg.encode()
        files[f"figures/{figure.name}.png"] = figure.png
    for name, content in files.items():
        write_file(output / name, content)
    for path in (output / "figures").glob("*.*"):  # a figure of a former report would pass for one of this
        if path.suffix in (".svg", ".png") and f"figures/{path.name}" not in files:
            path.unlink()
    return [output / name for name in files]
