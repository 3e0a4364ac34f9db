"""Tables and files of results."""

from __future__ import annotations

import io
import json
import pathlib

import pytest

from hvd_async.benchmarks.measurement import BenchFigure, BenchTarget, Spread, duration
from hvd_async.benchmarks.options import Options
from hvd_async.benchmarks.report import (
    HEADER,
    BenchMachine,
    Result,
    number,
    print_results,
    read_results,
    write_results,
)
from hvd_async.errors import DataError

RESULT = Result(
    "transport",
    BenchMachine("A processor", 8, 0.25, "3.11.7", "2.13.0", "Open MPI v5.0.11", 2),
    Options(sizes=(1.0,)),
    (
        duration("push", Spread(0.010, 0.009, 0.012, 7), ("memcpy", Spread.of([0.008])), BenchTarget("ratio at least", 0.9)),
        BenchFigure("idle", Spread.of([2.5]), "% of a core", target=BenchTarget("value at most", 3.0)),
        BenchFigure("bare", Spread.of([1234.0]), "steps/s"),
    ),
)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def table(is_terminal: bool) -> str:
    stream = io.StringIO()
    print_results([RESULT], stream, is_terminal=is_terminal)
    return stream.getvalue()


def test_every_figure_is_a_row_with_limit_ratio_and_target() -> None:
    lines = table(is_terminal=False).splitlines()
    assert (
        lines[0] == "transport: A processor, 8 cores (load 0.25), 2 hosts, 1 thread a rank, torch 2.13.0, Open MPI v5.0.11"
    )
    assert lines[1].split("  ")[0] == HEADER[0]
    assert lines[3].split() == "push 10.0 ms 9.00..12.0 memcpy 8.00 ms 0.80 >= 0.90 NO".split()
    assert lines[4].split() == "idle 2.50 % of a core 2.50..2.50 - - - <= 3 % of a core yes".split()
    assert lines[5].split() == "bare 1234 steps/s 1234..1234 - - - - -".split()


def test_a_terminal_gets_a_frame_and_the_same_words(wide: None) -> None:
    framed = table(is_terminal=True)
    assert "─" in framed and all(word in framed for word in ("push", "memcpy", "8.00 ms", ">= 0.90", "NO"))


def test_a_narrow_terminal_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert table(is_terminal=True) == table(is_terminal=False)


def test_results_are_read_back_from_their_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "results.json"
    write_results(path, [RESULT])
    assert read_results(path) == [RESULT]
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]
    result = json.loads(path.read_text())["results"][0]
    assert result["benchmark"] == "transport" and result["machine"]["cores"] == 8
    assert [figure["met"] for figure in result["figures"]] == [False, True, None]


@pytest.mark.parametrize("text", ["", "{}", '{"results": [{}]}', '{"results": 1}'])
def test_a_file_of_another_kind_is_refused(text: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"other\.json"):
        read_results(path)


def test_numbers_have_three_significant_digits() -> None:
    assert [number(value) for value in (0.0, 1.234, 12.34, 123.4, 12345.6)] == ["0.00", "1.23", "12.3", "123", "12346"]


def test_this_machine_is_described() -> None:
    here = BenchMachine.here()
    assert here.cpu and here.cores >= 1 and here.torch and here.hosts == 1 and here.mpi == ""
