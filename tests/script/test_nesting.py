"""A loop over epochs around the loop over the batches is found before it has trained for all of them."""

from __future__ import annotations

import runpy
import sys
import textwrap
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import pytest

from hvd_async.script.nesting import lines_of, loop_around


class MadeBatches:
    """Finds the loop around its own when it is first read, as the batches of a run do."""

    found: ClassVar[list[int | None]] = []

    def __init__(self) -> None:
        self._began = lines_of(caller())

    def __iter__(self) -> Any:
        frame = caller()
        assert frame is not None
        self.found.append(loop_around(frame, self._began))
        return iter([1])


def caller() -> FrameType | None:
    return sys._getframe(2)


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("batches = Batches()\nfor batch in batches:\n    pass", None),
        ("batches = Batches()\nfor epoch in range(1):\n    for batch in batches:\n        pass", 2),
        ("batches = Batches()\nwhile True:\n    for i, batch in enumerate(batches):\n        pass\n    break", 2),
        (
            "batches = Batches()\nfor epoch in range(1):\n    if epoch == 0:\n        for batch in batches: pass",
            2,
        ),
        (
            "b = Batches()\nfor x in (1,):\n    try:\n        1 / 0\n    except ArithmeticError:\n        for y in b: pass",
            2,
        ),
        # A loop over runs, each with batches of its own.
        ("for rate in (1,):\n    batches = Batches()\n    for batch in batches:\n        pass", None),
        ("def made():\n    return Batches()\nfor rate in (1,):\n    for batch in made():\n        pass", None),
        ("for rate in (1,):\n    batches = Batches()\n    for epoch in (1,):\n        for batch in batches: pass", 3),
        # Loops of other functions are not around it, and after it is not around.
        ("def train(batches):\n    for batch in batches: pass\nfor x in (1,):\n    train(Batches())", None),
        ("def train(batches):\n    for epoch in (1,):\n        for batch in batches: pass\ntrain(Batches())", 2),
        ("batches = Batches()\nfor x in (1,):\n    pass\nfor batch in batches:\n    for x in (1,): pass", None),
        ("batches = Batches()\nfor epoch in range(1):\n    list(batches)", None),  # no loop of its own
    ],
)
def test_a_loop_around_that_over_the_batches_is_found(script: str, line: int | None, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(script) + "\n")
    MadeBatches.found = []
    runpy.run_path(str(tmp_path / "script.py"), {"Batches": MadeBatches})
    assert MadeBatches.found == [line]


def test_without_a_source_nothing_is_found() -> None:
    MadeBatches.found = []
    exec("batches = Batches()\nfor epoch in range(1):\n    for batch in batches: pass", {"Batches": MadeBatches})
    assert MadeBatches.found == [None]
