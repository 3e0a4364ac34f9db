"""A folder in which jobs are submitted, with stand-ins for the commands of a batch system."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

import pytest

from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.mpi.runs import write_config

_ROOT = pathlib.Path(__file__).parents[2]


def make_desk(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, programs: Mapping[str, str]) -> None:
    """Go to `folder`, with a tiny run and its text, and with `programs`, texts by name, first on PATH."""
    for name, text in programs.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    write_corpus(folder / "text", train=60, validation=8, test=8)
    training = {"weight": None, "updates": 4, "threads": 1}
    write_config(folder, strategy={"kind": "async"}, training=training, validation={"every": None})
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(_ROOT))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
