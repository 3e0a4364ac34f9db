"""The files of a report."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence

from hvd_async.comparison.collection import Collection
from hvd_async.comparison.results import Row, results
from hvd_async.errors import ConfigError
from hvd_async.report.contents import contents
from hvd_async.report.figures.timeline import TimeWindow
from hvd_async.report.writers.csv_files import runs_csv, variants_csv
from hvd_async.report.writers.html import html
from hvd_async.report.writers.markdown import markdown
from hvd_async.system.files import write_file


def write_report(
    collection: Collection,
    output: pathlib.Path,
    window: TimeWindow | None = None,
    rows: Sequence[Row] | None = None,
    *,
    overwrite: bool = False,
) -> list[pathlib.Path]:
    """Write the report of `collection` into `output`; return the paths of its files, `report.html` first.

    Equal runs give equal bytes. `window`: part of the run in the timelines; by default, some steps in the middle of each
    run. `rows`: its `results`, if they have been computed. An earlier report is replaced; other files of these names only
    with `overwrite`. Raises `DataError` if a run's event log is damaged, or a file cannot be written, and `ConfigError`
    for files that must not be replaced.
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
    former = _figures_of_former(output)
    if former is None and not overwrite and (there := [name for name in files if (output / name).exists()]):
        raise ConfigError(
            f"--output: got {output}, where {there[0]} is not from a report, expected a folder without it;"
            " name another folder, or replace it with --overwrite"
        )
    for name, content in files.items():
        write_file(output / name, content)
    for name in (former or set()) - files.keys():  # it would be taken for a figure of this report
        (output / name).unlink(missing_ok=True)
    return [output / name for name in files]


def _figures_of_former(output: pathlib.Path) -> set[str] | None:
    """Return the names of the figures of the report in `output`; None if there is none."""
    if not all((output / name).is_file() for name in ("report.html", "report.md", "runs.csv", "variants.csv")):
        return None
    text = (output / "report.md").read_text(encoding="utf-8", errors="replace")
    return {f"{name}.{kind}" for name in re.findall(r"\]\((figures/[\w.-]+)\.svg\)", text) for kind in ("svg", "png")}
