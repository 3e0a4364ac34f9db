"""Slots of more than 2^31 bytes: no size on the way is limited to 32 bits."""

from __future__ import annotations

import pytest

from hvd_async.store.wire.layout import Layout
from hvd_async.transport.capacity import free_memory
from tests.ranks import run_ranks

pytestmark = [pytest.mark.mpi, pytest.mark.slow, pytest.mark.timeout(1200)]

SIZE = 550_000_000  # of float32: 2.2 GB


def skip_without_room() -> None:
    """Skip the test unless memory suffices for two published copies and a slot in shared memory, the worker's vector,
    and half a GB for two interpreters.
    """
    room, layout = free_memory(), Layout(SIZE, 1, num_buffers=2)
    for name, free, needed in (
        ("memory", room.memory, layout.total_bytes + 4 * SIZE + 2**29),
        ("/dev/shm", room.shared, layout.total_bytes),
    ):
        if free is not None and free < needed:  # None: not limited, or not used here
            pytest.skip(f"{name}: {free} bytes free, {needed} needed")


def test_a_vector_of_more_than_31_bits_goes_through_shared_memory() -> None:
    skip_without_room()
    done = run_ranks(2, "tests.mpi.giant", str(SIZE), "3", timeout=300).check()
    assert done.stdout.count("shared memory: 2200000000 bytes there and back") == 3


def test_a_vector_of_more_than_31_bits_goes_from_host_to_host(two_hosts: tuple[str, str]) -> None:
    skip_without_room()
    done = run_ranks(2, "tests.mpi.giant", str(SIZE), "1", timeout=600, hosts=two_hosts).check()
    assert done.stdout.count("MPI: 2200000000 bytes there and back") == 1
