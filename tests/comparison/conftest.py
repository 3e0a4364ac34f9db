"""Fixtures: a tiny corpus for all suites of a test file, a folder with the configuration that suites are based on, and rows of
figures from runs whose figures are known."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from hvd_async.comparison.collection import Collection, Entry
from hvd_async.comparison.results import Row, results
from hvd_async.comparison.target import Target
from tests.comparison.made import TARGET, Events, Rows, write_run
from tests.comparison.tiny import write_base, write_text


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def folder(tmp_path: pathlib.Path, text: pathlib.Path) -> pathlib.Path:
    write_base(tmp_path, text)
    return tmp_path


@pytest.fixture
def rows(tmp_path: pathlib.Path) -> Rows:
    """Return a function that writes the runs of entries, each with its events, and computes their rows."""

    def make(
        *entries: Entry, target: Target | None = TARGET, rates: tuple[float, ...] = (), logs: dict[int, Events] | None = None
    ) -> list[Row]:
        placed = []
        for number, each in enumerate(entries):
            folder = tmp_path / str(number)
            found = None if each.run is None else dataclasses.replace(each.run, folder=folder)
            if found is not None:
                write_run(found, (logs or {}).get(number, ()))
            placed.append(dataclasses.replace(each, run=found, folder=folder))
        return results(Collection("made", entries[0].variant, target, tuple(placed), rates))

    return make
