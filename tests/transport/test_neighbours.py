"""What a rank knows of the other processes of its host while it waits for them, and removes when it ends."""

from __future__ import annotations

import json
import mmap
import pathlib
import signal
import subprocess
import sys
import threading
import uuid

import pytest

from hvd_async.errors import PeerError
from hvd_async.system.process_state import scope_of_ids
from hvd_async.transport import neighbour_watch
from hvd_async.transport.neighbour_watch import NeighbourWatch, own_process
from hvd_async.transport.segments import remove_segments


@pytest.fixture
def idle() -> subprocess.Popen[bytes]:
    """A process that ends when its standard input is closed."""
    return subprocess.Popen((sys.executable, "-S", "-c", "input()"), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)


def test_a_rank_of_this_host_that_has_gone_ends_the_job_that_waits_for_it(
    idle: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(neighbour_watch, "_GRACE_SECONDS", 0.0)
    ended, statuses = threading.Event(), list[int]()

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    far = json.dumps([scope_of_ids() + 1, idle.pid])
    watch = NeighbourWatch(0, [own_process(), far, json.dumps([scope_of_ids(), idle.pid])], end)
    with idle:
        pass
    with watch.waiting([0, 1]):  # not for the rank that has gone, and rank 1 is on another host
        assert not ended.wait(3 * neighbour_watch._LOOK_SECONDS)
    with watch.waiting([0, 1, 2]):
        assert ended.wait(60.0)
    assert set(statuses) == {PeerError.exit_status}
    assert "hvd-async: rank 0: rank 2 has ended by itself while others waited for it" in capsys.readouterr().err


def test_a_rank_that_is_stopped_for_long_ends_the_job_that_waits_for_it(
    idle: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    ended, seconds = threading.Event(), 4 * neighbour_watch._LOOK_SECONDS
    processes = [own_process(), json.dumps([scope_of_ids(), idle.pid])]
    watch = NeighbourWatch(0, processes, lambda status: ended.set(), seconds)
    with idle:
        idle.send_signal(signal.SIGSTOP)
        with watch.waiting([0, 1]):
            assert ended.wait(60.0)
        idle.send_signal(signal.SIGCONT)
    found = f"hvd-async: rank 0: rank 1: its process {idle.pid} has been stopped (SIGSTOP) for {seconds:.0f} s"
    assert found in capsys.readouterr().err


def test_a_rank_that_is_stopped_for_long_is_ended_where_the_others_go_on_without_it(
    idle: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    ended, processes = threading.Event(), [own_process(), json.dumps([scope_of_ids(), idle.pid])]
    watch = NeighbourWatch(0, processes, lambda status: ended.set(), neighbour_watch._LOOK_SECONDS)
    with idle:
        idle.send_signal(signal.SIGSTOP)
        with watch.waiting([0, 1], goes_on=True):
            assert idle.wait(60.0) == -signal.SIGKILL
            assert not ended.is_set()
    assert "it is ended, and they go on" in capsys.readouterr().err


def test_ranks_that_live_may_be_waited_for(idle: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbour_watch, "_GRACE_SECONDS", 0.0)
    ended = threading.Event()
    watch = NeighbourWatch(0, [own_process(), json.dumps([scope_of_ids(), idle.pid])], lambda status: ended.set())
    with idle, watch.waiting([0, 1]):
        assert not ended.wait(3 * neighbour_watch._LOOK_SECONDS)


def test_only_the_segments_that_this_process_maps_are_removed() -> None:
    name = uuid.uuid4().hex
    mine, others, other_kind = (
        pathlib.Path("/dev/shm", f"{kind}.{name}.{n}") for n, kind in enumerate(("sm_segment", "sm_segment", "segment"))
    )
    try:
        for path in (mine, others, other_kind):
            path.write_bytes(b"x" * mmap.PAGESIZE)
        with mine.open("r+b") as file, other_kind.open("r+b") as other_file:
            with mmap.mmap(file.fileno(), 0) as mapped, mmap.mmap(other_file.fileno(), 0):
                remove_segments()
                assert mapped[:1] == b"x"
        assert [path.exists() for path in (mine, others, other_kind)] == [False, True, True]
    finally:
        for path in (mine, others, other_kind):
            path.unlink(missing_ok=True)
