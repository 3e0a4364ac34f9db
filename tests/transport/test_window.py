"""Every way to reach a block keeps the contract of `Window`: threads, ranks of one host, ranks of two hosts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hvd_async.store.wire.layout import Layout
from hvd_async.transport.inprocess import MappedMemory, ThreadMemory
from hvd_async.vectors import arithmetic
from tests.ranks import run_ranks
from tests.transport.contract import CONTRACT, Actor, make_layout, run_threads


class MemoryWithoutBells(ThreadMemory):
    """Memory without bells, as without the C extension."""

    has_bells = False


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("memory_type", [ThreadMemory, MemoryWithoutBells])
def test_threads_keep_the_contract(
    check: Callable[[Actor], None], memory_type: type[MappedMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    if memory_type is MemoryWithoutBells:
        monkeypatch.setattr(arithmetic, "_c", None)
    memory = ThreadMemory(make_layout(3)) if memory_type is ThreadMemory else MemoryWithoutBells(make_layout(3))
    run_threads(3, lambda group: check(Actor(group, memory, is_owner=group.rank == 0)))


@pytest.mark.mpi
def test_ranks_of_one_host_keep_the_contract() -> None:
    done = run_ranks(3, "tests.transport.contract", "[[0, 1], null]", timeout=120).check()
    assert sorted(done.stdout.splitlines()) == [f"rank {rank}: shared memory, shared memory" for rank in range(3)]


@pytest.mark.mpi
@pytest.mark.parametrize(
    "without_c", ["null", pytest.param("1", marks=pytest.mark.slow), pytest.param("2", marks=pytest.mark.slow)]
)
def test_ranks_of_two_hosts_keep_the_contract(two_hosts: tuple[str, str], without_c: str) -> None:
    """Ranks 0 and 1 share the first host, rank 2 is on the second; each block is remote for at least one rank. Where a rank has
    no C extension, MPI carries out the atomic operations of all."""
    arguments = f"[[0, 2], {without_c}]"
    done = run_ranks(3, "tests.transport.contract", arguments, timeout=150, hosts=two_hosts).check()
    assert sorted(done.stdout.splitlines()) == [
        "rank 0: shared memory, MPI",
        "rank 1: shared memory, MPI",
        "rank 2: MPI, shared memory",
    ]


def test_a_block_that_is_too_small_is_refused() -> None:
    layout = Layout(4, 1)
    with pytest.raises(ValueError, match=f"block: got 100 bytes, expected {layout.total_bytes}"):
        MappedMemory(layout, torch.zeros(100, dtype=torch.uint8).numpy())
