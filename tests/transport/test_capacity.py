"""Memory needed, compared with free memory: one message on all ranks, with its arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hvd_async.errors import SetupError
from hvd_async.transport.capacity import Need, Room, check_capacity, free_memory
from hvd_async.transport.group import Solo
from tests.transport.contract import ThreadGroup, run_threads

GIB, MIB = 2**30, 2**20
HINT = "; use fewer ranks on the node, or a larger /dev/shm"
Rank = tuple[str, list[Need], Room]


def messages(*ranks: Rank) -> set[str]:
    """Return the distinct errors of ranks with the given host, needs and room; {""} if none fails."""
    errors = set()

    def check(group: ThreadGroup) -> None:
        try:
            check_capacity(group, *ranks[group.rank])
        except SetupError as error:
            errors.add(str(error))
        else:
            errors.add("")

    run_threads(len(ranks), check)
    return errors


def slots(num_bytes: int) -> Need:
    return Need("slots", num_bytes, is_shared=True)


def overlap(num_bytes: int) -> Need:
    return Need("overlap", num_bytes, is_shared=False)


def test_needs_that_fit_to_the_last_byte_pass() -> None:
    room = Room(memory=5 * MIB, shared=3 * MIB)
    assert messages(("a", [slots(MIB), overlap(2 * MIB)], room), ("a", [slots(2 * MIB)], room)) == {""}


def test_one_byte_too_much_is_reported_on_every_rank_with_its_arithmetic() -> None:
    room = Room(memory=GIB, shared=3 * GIB)
    ranks: Sequence[Rank] = [
        ("a", [slots(GIB // 2), overlap(MIB)], room),
        ("a", [overlap(MIB)], room),
        ("a", [overlap(MIB), Need("error", 100, False), overlap(1536)], room),
    ]
    assert messages(*ranks[:2]) == {""}
    assert messages(*ranks, ("a", [Need("the rest", GIB // 2 - 3 * MIB - 1635, False)], room)) == {
        "a: memory: got 1.0 GiB free, expected 1.0 GiB = 512.0 MiB (slots) + 3 x 1.0 MiB (overlap) + 100 bytes (error)"
        f" + 1.5 KiB (overlap) + 509.0 MiB (the rest){HINT}"
    }


def test_shared_memory_and_memory_are_counted_separately() -> None:
    room = Room(memory=8 * GIB, shared=GIB)
    assert messages(("a", [slots(2 * GIB), overlap(GIB)], room)) == {
        f"a: /dev/shm: got 1.0 GiB free, expected 2.0 GiB = 2.0 GiB (slots){HINT}"
    }
    assert messages(("a", [slots(GIB), overlap(5 * GIB)], room)) == {""}
    assert messages(("a", [slots(2 * GIB), overlap(7 * GIB)], room)) == {
        "a: /dev/shm: got 1.0 GiB free, expected 2.0 GiB = 2.0 GiB (slots);"
        f" a: memory: got 8.0 GiB free, expected 9.0 GiB = 2.0 GiB (slots) + 7.0 GiB (overlap){HINT}"
    }


def test_every_host_is_counted_separately_and_all_that_lack_memory_are_named() -> None:
    small, large = Room(GIB, GIB), Room(4 * GIB, 4 * GIB)
    ranks = (
        ("a", [slots(GIB)], small),
        ("b", [slots(GIB)], large),
        ("a", [overlap(GIB)], small),
        ("b", [slots(GIB)], large),
    )
    assert messages(*ranks) == {f"a: memory: got 1.0 GiB free, expected 2.0 GiB = 1.0 GiB (slots) + 1.0 GiB (overlap){HINT}"}
    assert messages(*ranks, ("b", [slots(3 * GIB)], large)) == {
        "a: memory: got 1.0 GiB free, expected 2.0 GiB = 1.0 GiB (slots) + 1.0 GiB (overlap);"
        " b: /dev/shm: got 4.0 GiB free, expected 5.0 GiB = 2 x 1.0 GiB (slots) + 3.0 GiB (slots);"
        f" b: memory: got 4.0 GiB free, expected 5.0 GiB = 2 x 1.0 GiB (slots) + 3.0 GiB (slots){HINT}"
    }


def test_the_smallest_figure_of_a_host_counts() -> None:
    assert messages(("a", [slots(2)], Room(9, 9)), ("a", [], Room(9, 1))) == {
        f"a: /dev/shm: got 1 bytes free, expected 2 bytes = 2 bytes (slots){HINT}"
    }


def test_unknown_figures_limit_nothing() -> None:
    assert messages(("a", [slots(2**60)], Room(None, None)), ("b", [], Room(1, 1))) == {""}
    assert messages(("a", [slots(2)], Room(None, 2)), ("a", [slots(1)], Room(None, None))) == {
        f"a: /dev/shm: got 2 bytes free, expected 3 bytes = 2 bytes (slots) + 1 bytes (slots){HINT}"
    }


def test_this_machine_has_room_for_one_byte_but_not_for_an_exbibyte() -> None:
    room = free_memory()
    check_capacity(Solo(), "here", [overlap(1)], room)
    check_capacity(Solo(), "here", [slots(1)])
    if room.memory is not None:
        with pytest.raises(SetupError, match=r"here: memory: got .* free, expected 1073741824\.0 GiB"):
            check_capacity(Solo(), "here", [overlap(2**60)])
