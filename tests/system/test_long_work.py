"""Tests of `told_if_long`."""

from __future__ import annotations

import threading

import pytest

from hvd_async.system import long_work
from hvd_async.system.long_work import told_if_long


def timer() -> threading.Timer:
    [found] = (thread for thread in threading.enumerate() if isinstance(thread, threading.Timer))
    return found


def test_only_long_work_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(long_work, "_LONG_SECONDS", 3600.0)
    with told_if_long("brief"):
        waiting = timer()
    waiting.join(60)
    assert not waiting.is_alive() and capsys.readouterr().out == ""
    monkeypatch.setattr(long_work, "_LONG_SECONDS", 0.0)
    with told_if_long("reading"):
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join(60)
        assert capsys.readouterr().out == "reading: this takes a while\n"
