"""Results of benchmarks as a table with the facts of the machine, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from hvd_async import __version__
from hvd_async.benchmarks.measurement import BenchFigure
from hvd_async.benchmarks.options import Options
from hvd_async.errors import DataError
from hvd_async.system.files import write_file
from hvd_async.system.json_text import parse_json
from hvd_async.system.machine import processor_name
from hvd_async.system.text_tables import aligned_table

HEADER = ("figure", "median", "quartiles", "limit", "its median", "ratio", "target", "met")
_NUM_TEXT_COLUMNS = 1
_LIMIT_COLUMN = 3
# Rich's frame takes one space more per column than the gap of plain text.
_RICH_MARGIN = len(HEADER) + 2


@dataclasses.dataclass(frozen=True)
class BenchMachine:
    """Facts of the machine on which figures depend. `hosts`: number of hosts; `mpi`: empty if no MPI was used."""

    cpu: str
    cores: int
    load: float
    """Load average of the last minute before the benchmark; much above 0, other processes disturb the benchmark."""
    python: str
    torch: str
    mpi: str = ""
    hosts: int = 1

    @classmethod
    def here(cls, mpi: str = "", hosts: int = 1) -> BenchMachine:
        """Return the facts of this process's machine."""
        return cls(
            cpu=processor_name(),
            cores=len(os.sched_getaffinity(0)),
            load=round(os.getloadavg()[0], 2),
            python=platform.python_version(),
            torch=str(torch.__version__),
            mpi=mpi,
            hosts=hosts,
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """All figures of one benchmark."""

    benchmark: str
    machine: BenchMachine
    options: Options
    figures: tuple[BenchFigure, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "benchmark": self.benchmark,
            "hvd_async": __version__,
            "machine": dataclasses.asdict(self.machine),
            "options": dataclasses.asdict(self.options),
            "figures": [figure.to_json() for figure in self.figures],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Result:
        """Return the result from the data of `to_json`."""
        options = Options(**{**data["options"], "sizes": tuple(data["options"]["sizes"])})
        figures = tuple(BenchFigure.from_json(figure) for figure in data["figures"])
        return cls(data["benchmark"], BenchMachine(**data["machine"]), options, figures)


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write `{"results": [...]}` to `path`, completely or not at all. Raises `DataError` if it cannot be written."""
    document = {"results": [result.to_json() for result in results]}
    write_file(path, (json.dumps(document, indent=1) + "\n").encode())


def read_results(path: Path) -> list[Result]:
    """Return the results that `write_results` wrote. Raises `DataError` for any other file."""
    try:
        return [Result.from_json(data) for data in parse_json(path.read_bytes())["results"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no results of hvd-async bench: {error}") from None


def print_results(results: Sequence[Result], stream: TextIO, *, is_terminal: bool) -> None:
    """Print a table for each benchmark: in colour on a terminal that is wide enough, otherwise as plain aligned text."""
    for result in results:
        rows = [cells(figure) for figure in result.figures]
        plain = plain_table(rows)
        if is_terminal and shutil.get_terminal_size().columns >= plain.index("\n") + _RICH_MARGIN:
            _print_rich(result, rows, stream)
        else:
            stream.write(f"{title(result)}\n{plain}\n\n")
    stream.flush()


def title(result: Result) -> str:
    """Return one line that names the benchmark and the machine."""
    machine, options = result.machine, result.options
    threads = "1 thread" if options.threads == 1 else f"{options.threads} threads"
    hosts = "" if machine.hosts == 1 else f", {machine.hosts} hosts"
    mpi = f", {machine.mpi}" if machine.mpi else ""
    return (
        f"{result.benchmark}: {machine.cpu}, {machine.cores} cores (load {machine.load}){hosts}, {threads} a rank,"
        f" torch {machine.torch}{mpi}"
    )


def cells(figure: BenchFigure) -> tuple[str, ...]:
    """Return the row of `figure`, in the order of `HEADER`."""
    limit = figure.limit
    return (
        figure.name,
        f"{number(figure.value.median)} {figure.unit}",
        f"{number(figure.value.low)}..{number(figure.value.high)}",
        limit.name if limit else "-",
        f"{number(limit.spread.median)} {figure.unit}" if limit else "-",
        "-" if figure.ratio is None else f"{figure.ratio:.2f}",
        _target_text(figure),
        {True: "yes", False: "NO", None: "-"}[figure.met],
    )


def _target_text(figure: BenchFigure) -> str:
    if figure.target is None:
        return "-"
    if figure.target.kind == "ratio at least":
        return f">= {figure.target.bound:.2f}"
    return f"<= {figure.target.bound:g} {figure.unit}"


def number(value: float) -> str:
    """Return `value` with three digits, never in powers of ten."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """Return `rows` below their head, columns aligned: names left, numbers right."""
    return aligned_table([HEADER, *rows], [column for column in range(len(HEADER)) if _is_text(column)])


def _print_rich(result: Result, rows: Sequence[Sequence[str]], stream: TextIO) -> None:
    from rich.console import Console  # late: not needed for plain text
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title(result), title_justify="left")
    for i, name in enumerate(HEADER):
        table.add_column(name, justify="left" if _is_text(i) else "right")
    for row, figure in zip(rows, result.figures, strict=True):
        style = {True: "green", False: "red", None: ""}[figure.met]
        table.add_row(*(Text(cell) for cell in row[:-1]), Text(row[-1], style=style))
    Console(file=stream).print(table)


def _is_text(column: int) -> bool:
    return column < _NUM_TEXT_COLUMNS or column == _LIMIT_COLUMN
