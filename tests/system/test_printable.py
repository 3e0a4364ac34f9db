"""Text from outside, printed in messages, reports and tables."""

from __future__ import annotations

import csv
import io
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_async.__main__ import report
from hvd_async.errors import DataError
from hvd_async.system.printable import printable, printable_lines, shortened, spreadsheet_cell


@given(st.text())
def test_printable_text_is_one_line_and_loses_nothing(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and (shown == text) == text.isprintable()
    assert printable(shown) == shown
    assert all(line.isprintable() for line in printable_lines(text).split("\n"))
    assert printable_lines(text).count("\n") == text.count("\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe 3, 大", "Größe 3, 大"),
        ("a\nhvd-async: all is well", "a\\nhvd-async: all is well"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("abc\u202edcb", "abc\\u202edcb"),
        ("caf\udce9", "caf\\udce9"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_long_values_lose_their_middle() -> None:
    assert shortened("x" * 50) == repr("x" * 50)
    assert len(shortened(list(range(10**5)))) < 250


@given(st.text(max_size=20))
def test_no_cell_is_a_formula(text: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerow([spreadsheet_cell(text), "end"])
    (row,) = csv.reader(io.StringIO(file.getvalue()))
    assert row[1] == "end" and not row[0].startswith(("=", "+", "-", "@", "\t", "\r"))


def test_a_message_cannot_forge_a_line_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise DataError("model: tensor \x1b[2Ja\x85hvd-async: done\u2028 is unknown\nand another fault")

    assert report(fail) == 3
    assert capsys.readouterr().err == (
        "hvd-async: model: tensor \\x1b[2Ja\\x85hvd-async: done\\u2028 is unknown\nhvd-async: and another fault\n"
    )


def test_no_other_module_writes_csv() -> None:
    """Modules that write names into CSV must pass them through `spreadsheet_cell`."""
    root = pathlib.Path(__file__).parents[2] / "hvd_async"
    writers = {path.name for path in root.rglob("*.py") if "csv.DictWriter" in path.read_text(encoding="utf-8")}
    assert writers == {"csv_files.py", "planning.py"}  # the latter writes only numbers and words of its own
