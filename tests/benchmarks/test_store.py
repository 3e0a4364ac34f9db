"""The store benchmark measures the updates it claims to measure."""

from __future__ import annotations

import pytest
import torch

from hvd_async.benchmarks.options import Options
from hvd_async.benchmarks.store import NUM_ARRIVALS, ProvisionalArrival, StoreUpdate, TorchUpdate, check_memory, measure
from hvd_async.errors import SetupError


def test_store_and_torch_make_the_same_updates() -> None:
    torch.manual_seed(5)
    slots = [torch.randn(100) for _ in range(NUM_ARRIVALS)]
    ours, theirs = torch.zeros(100), torch.zeros(100)
    for update in (StoreUpdate(slots, ours), TorchUpdate(slots, theirs)):
        for _ in range(4):  # after an even number of versions, the newest one is in the first buffer
            update()
    # The sums differ by a constant factor, to which Adam is insensitive except for epsilon.
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    assert ours.abs().min() > 0


def test_provisional_parameters_leave_version_1_unchanged() -> None:
    slots, published = [torch.full((100,), value) for value in (1.0, 3.0)], torch.zeros(100)
    measured = ProvisionalArrival(slots, published)
    version_1 = published.clone()
    vectors = measured._store._vectors._provisional  # type: ignore[attr-defined]
    for _ in range(3):
        measured()
    assert torch.equal(published, version_1) and all(vector.lt(version_1).all() for vector in vectors)


def test_every_size_has_four_figures() -> None:
    figures = measure(Options(sizes=(0.001, 0.002), repeats=2, seconds=1.0))
    assert [figure.name.split(", ")[-1] for figure in figures] == ["0.001 M"] * 4 + ["0.002 M"] * 4
    for memcpy, others, clipped, provisional in zip(*(figures[first::4] for first in range(4)), strict=True):
        assert memcpy.value == others.value  # one measurement compared with two limits
        assert memcpy.limit is not None and memcpy.ratio == pytest.approx(memcpy.limit.spread.median / memcpy.value.median)
        assert memcpy.target is not None and memcpy.target.bound == 0.8
        assert others.target is not None and others.target.bound == 1.0  # small updates must never be slower
        assert provisional.name.startswith("provisional") and provisional.limit is not None
        assert provisional.limit.spread.median == pytest.approx(memcpy.limit.spread.median * 7 / 11)
        assert "clipped" in clipped.name and clipped.limit is not None
        assert clipped.limit.spread.median == pytest.approx(memcpy.limit.spread.median * 13 / 11)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_limit_is_a_copy_in_its_memory() -> None:
    figures = measure(Options(sizes=(0.1,), repeats=2, seconds=1.0, device="cuda"))
    assert figures[0].limit is not None and figures[0].limit.name == "copy of as many bytes in device memory"
    assert torch.cuda.get_device_name(0) in figures[0].name


def test_too_little_memory_is_reported_before_measuring() -> None:
    check_memory(1000, 200_000)
    check_memory(10**12, None)
    with pytest.raises(SetupError, match=r"got 0\.0 GB free, expected 120\.0 GB for 1000 million"):
        check_memory(10**9, 1000)
