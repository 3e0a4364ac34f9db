"""Blocks over TCP and in memory without a name: the contract of windows, and who is let in."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from hvd_async.errors import PeerError, SetupError
from hvd_async.store.wire.layout import Layout
from hvd_async.system import shared_memory
from hvd_async.transport import host_memory, network_memory
from hvd_async.transport.host_memory import HostMemory
from hvd_async.transport.inprocess import ThreadMemory
from hvd_async.transport.network_memory import Address, Door, GuestMemory, Visit
from tests.transport.contract import CONTRACT, Actor, ThreadGroup, make_layout, run_threads

NO_PLACE = "all 2 places are taken"


def make_door(memory: ThreadMemory[Layout]) -> Door[Layout]:
    places = iter((0, 1))

    def take() -> int:
        place = next(places, None)
        if place is None:
            raise SetupError(NO_PLACE)
        return place

    return Door([memory], take, 30.0)


@pytest.fixture
def memory() -> ThreadMemory[Layout]:
    return ThreadMemory(Layout(1000, 2))


@pytest.fixture
def door(memory: ThreadMemory[Layout]) -> Iterator[Door[Layout]]:
    with make_door(memory) as door:
        yield door


@contextlib.contextmanager
def visit(door: Door[Layout]) -> Iterator[Visit]:
    guest = Visit(dataclasses.replace(door.address, hosts=("127.0.0.1",)), 30.0)
    try:
        yield guest
    finally:
        guest.close()


def until(is_over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not is_over():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # a thread of the door


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_guests_and_the_owner_keep_the_contract(check: Callable[[Actor], None]) -> None:
    memory = ThreadMemory(make_layout(3))
    with make_door(memory) as door:

        def act(group: ThreadGroup) -> None:
            with visit(door) as guest:
                window = memory if group.rank == 0 else GuestMemory(memory.layout, guest, 0)
                check(Actor(group, window, is_owner=group.rank == 0))

        run_threads(3, act)


@pytest.mark.skipif(not host_memory.is_available(), reason="no memory without a name, or no C extension")
@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_memory_without_a_name_keeps_the_contract(check: Callable[[Actor], None]) -> None:
    layout = make_layout(3)
    place = shared_memory.make(layout.total_bytes)
    memory = HostMemory(layout, shared_memory.map_place(place))
    os.close(place.descriptor)  # it lives on as long as it is mapped
    run_threads(3, lambda group: check(Actor(group, memory, is_owner=group.rank == 0)))


@pytest.mark.skipif(not host_memory.is_available(), reason="no memory without a name, or no C extension")
def test_memory_without_a_name_is_found_by_other_processes_and_says_when_its_owner_has_gone() -> None:
    program = (
        "import sys, torch; from hvd_async.system import shared_memory as h\n"
        "place = h.make(4096); h.map_place(place)[0] = 7\n"
        "print(place.process, place.scope, place.descriptor, place.num_bytes, place.token, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        place = shared_memory.Place(*map(int, owner.stdout.readline().split()))
        mapped = shared_memory.map_place(place)
        assert place.is_here and mapped[0] == 7
        with pytest.raises(SetupError, match="it is another file: it was closed, or the process is a later one"):
            shared_memory.map_place(dataclasses.replace(place, token=place.token + 1))
        owner.kill()
        owner.wait()
    assert mapped[0] == 7
    with pytest.raises(SetupError, match=f"the memory of process {place.process}, which has ended: cannot be opened"):
        shared_memory.map_place(place)


def test_places_are_taken_until_none_is_left_and_a_guest_that_goes_has_ended(door: Door[Layout]) -> None:
    with visit(door) as first, visit(door) as second, visit(door) as third:
        assert [first.take_place(), second.take_place()] == [0, 1]
        with pytest.raises(SetupError, match=NO_PLACE):
            third.take_place()
        assert not door.ended()
        first.close()
        until(lambda: door.ended() == {0})


def test_a_guest_that_is_shut_out_writes_nothing_any_more(door: Door[Layout], memory: ThreadMemory[Layout]) -> None:
    with visit(door) as guest:
        window = GuestMemory(memory.layout, guest, 0)
        assert guest.take_place() == 0
        door.shut_out(0)
        with pytest.raises(PeerError, match=r"the connection to the store has ended .*takes this worker for dead"):
            for value in range(100_000):
                window.store(5, value)
                window.flush()
        until(lambda: door.ended() == {0})
    assert memory.load(5) < 100_000


def test_nobody_is_let_in_without_the_secret(door: Door[Layout], memory: ThreadMemory[Layout]) -> None:
    wrong = dataclasses.replace(door.address, hosts=("127.0.0.1",), secret="0" * 64)
    with pytest.raises(SetupError, match="does not answer"):
        Visit(wrong, 5.0)
    with socket.create_connection(("127.0.0.1", door.address.port), 30.0) as stranger:
        nonce = stranger.recv(32)
        stranger.sendall(nonce)  # what the host sent, sent back
        proof = stranger.recv(32, socket.MSG_WAITALL)
        stranger.sendall(proof)  # and the host's proof
        store = struct.pack("<BBxxxxxxqqq", 3, 0, 5, 1, 0)
        with pytest.raises(OSError, match=r"reset|Broken"):
            for _ in range(1000):
                stranger.sendall(store)
                time.sleep(0.001)
    assert memory.load(5) == 0


@pytest.mark.parametrize(
    "request_words",
    [
        (3, 0, 10**6, 1, 0),
        (3, 0, -1, 1, 0),
        (2, 0, 0, 10**6, 0),
        (7, 0, 0, 10**9, 0),
        (8, 0, -8, 8, 0),
        (3, 1, 5, 1, 0),
        (99, 0, 0, 0, 0),
    ],
    ids=str,
)
def test_a_request_outside_of_the_block_ends_the_connection(
    door: Door[Layout], memory: ThreadMemory[Layout], request_words: tuple[int, ...]
) -> None:
    with visit(door) as guest:
        guest.send(*request_words)
        assert guest.socket.recv(1) == b""
    assert not any(memory.load_words(0, memory.layout.num_words))


def test_a_host_that_does_not_answer_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(SetupError, match=rf"does not answer on port {port}: 127.0.0.1: .*; is there a firewall"):
        Visit(Address(("127.0.0.1",), port, "x"), 5.0)


def test_strangers_that_say_nothing_keep_nobody_out_for_long(door: Door[Layout], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_memory, "_GREETING_SECONDS", 0.5)
    address = ("127.0.0.1", door.address.port)
    strangers = [socket.create_connection(address) for _ in range(40)]
    try:
        until(lambda: _can_visit(door))
    finally:
        for stranger in strangers:
            stranger.close()


def _can_visit(door: Door[Layout]) -> bool:
    try:
        with visit(door) as guest:
            return guest.take_place() == 0
    except SetupError:
        return False


def test_a_door_that_closes_ends_all_connections(memory: ThreadMemory[Layout]) -> None:
    with make_door(memory) as door:
        context = visit(door)
        guest = context.__enter__()
    with pytest.raises(PeerError, match="the connection to the store has ended"):
        for _ in range(1000):
            guest.take_place()
            time.sleep(0.001)
    context.__exit__(None, None, None)
