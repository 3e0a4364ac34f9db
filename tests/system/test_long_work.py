"""Tests of `told_if_long`."""

from __future__ import annotations

import time

import pytest

from hvd_async.system import long_work
from hvd_async.system.long_work import told_if_long


def test_only_long_work_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with told_if_long("brief"):
        pass
    monkeypatch.setattr(long_work, "_LONG_SECONDS", 0.0)
    told = ""
    with told_if_long("reading"):
        while not told:
            time.sleep(0.01)
            told = capsys.readouterr().out
    assert told == "reading: this takes a while\n"
