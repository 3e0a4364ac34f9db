"""Copies with several threads copy every byte, whatever the size."""

from __future__ import annotations

import pytest
import torch

from hvd_async.benchmarks.memcpy import memcpy_with, page_aligned, split
from hvd_async.vectors.threads import arithmetic_threads


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("num", [0, 1, 1024, 5000])
def test_memcpy_copies_every_byte(num: int, num_threads: int) -> None:
    source = torch.arange(num, dtype=torch.float32)
    target = torch.full((num + 1,), -1.0)
    with memcpy_with(num_threads) as copy:
        copy(source, target[:num])
    assert torch.equal(target[:num], source)
    assert target[num] == -1.0


@pytest.mark.parametrize(("num_bytes", "num_parts"), [(1, 4), (4096, 2), (4097, 2), (40960, 3), (10_000_000, 7)])
def test_parts_are_whole_pages_without_gaps(num_bytes: int, num_parts: int) -> None:
    parts = split(num_bytes, num_parts)
    assert len(parts) <= num_parts
    assert all(start % 4096 == 0 for start, _ in parts)
    assert [start for start, _ in parts[1:]] == [start + size for start, size in parts[:-1]]
    assert sum(size for _, size in parts) == num_bytes


def test_the_number_of_threads_is_restored() -> None:
    before = torch.get_num_threads()
    with arithmetic_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("num", [1, 1000, 5000])
def test_aligned_vectors_begin_with_a_page(num: int) -> None:
    vector = page_aligned(num)
    assert vector.shape == (num,) and vector.data_ptr() % 4096 == 0 and not vector.any()
