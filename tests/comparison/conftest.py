"""Fixtures: a tiny corpus for all suites of a test file, and a folder with the configuration that suites are based on."""

from __future__ import annotations

import pathlib

import pytest

from tests.comparison.tiny import write_base, write_text


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def folder(tmp_path: pathlib.Path, text: pathlib.Path) -> pathlib.Path:
    write_base(tmp_path, text)
    return tmp_path
