"""Gradients are written into slots, read from them, and their errors kept by the worker: no part is lost or counted
twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_async.config import PushConfig
from hvd_async.store.arrival import Arrival, Refusal
from hvd_async.store.pushed_gradient import Gradient
from hvd_async.store.shards.shard import Shard
from hvd_async.store.wire.layout import Layout, SlotDtype, SlotFormat, num_kept, slot_format
from hvd_async.store.wire.slots import Sent, SlotWriter, read_slot, split
from hvd_async.transport.inprocess import ThreadMemory
from hvd_async.vectors.arithmetic import BLOCK
from tests.store.stores import asynchronous, make_store, sgd

FORMATS = {
    "float32": PushConfig(),
    "bfloat16": PushConfig(dtype="bfloat16"),
    "float16": PushConfig(dtype="float16"),
    "bfloat16-feedback": PushConfig(dtype="bfloat16", error_feedback=True),
    "float16-feedback": PushConfig(dtype="float16", error_feedback=True),
    "few": PushConfig(keep=0.05, error_feedback=True),
    "few-bfloat16": PushConfig(dtype="bfloat16", keep=0.05, error_feedback=True),
    "few-float16": PushConfig(dtype="float16", keep=0.05, error_feedback=True),
}
WITH_FEEDBACK = [name for name, push in FORMATS.items() if push.error_feedback]
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Unmapped(ThreadMemory):
    """A block as a rank of another node sees it."""

    def mapped(self, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor | None:
        return None


class GradientPath:
    """The path of gradients from one worker to the sums of all shards. The worker has the second of two slots."""

    def __init__(
        self,
        size: int,
        push: PushConfig,
        num_shards: int = 1,
        error: torch.Tensor | None = None,
        memory_type: Callable[[Layout], ThreadMemory] = ThreadMemory,
    ) -> None:
        self.error = torch.zeros(size) if error is None else error
        self.parts = split(size, num_shards)
        self.memories = [
            memory_type(Layout(part.stop - part.start, 2, slot_format=slot_format(size, part, push))) for part in self.parts
        ]
        self.writer = SlotWriter(self.memories, self.parts, push, [self.error])
        self.shards = [Shard([torch.zeros(part.stop - part.start)], sgd()) for part in self.parts]

    def push(self, gradient: torch.Tensor) -> Sent:
        sent = self.writer.write(gradient, 1)
        for shard, received in zip(self.shards, self.read(sent), strict=True):
            shard.add(received, 1.0)
            shard.flush()
        return sent

    def read(self, sent: Sent) -> list[Gradient]:
        return [read_slot(memory, memory.layout, 1, sent.largest) for memory in self.memories]

    @property
    def sum(self) -> torch.Tensor:
        return torch.cat([shard.read("pending_sum") for shard in self.shards])


def exact_gradient(size: int, seed: int) -> torch.Tensor:
    """Return [size] multiples of 2^-10, a few of them much larger than the others, whose sums and remainders are exact
    in float32.
    """
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(-3000, 3000, (size,), generator=generator)
    return (small * torch.randint(1, 40, (size,), generator=generator).div(39, rounding_mode="floor").mul(90).add(1)) / 1024


# --- Ranges and formats -----------------------------------------------------------------------------------------------


@given(size=st.integers(1, 400 * BLOCK), num_shards=st.integers(1, 40))
def test_ranges_cover_the_vector_in_whole_blocks_of_about_equal_number(size: int, num_shards: int) -> None:
    parts = split(size, num_shards)
    assert len(parts) == num_shards and (parts[0].start, parts[-1].stop) == (0, size)
    assert all(before.stop == after.start for before, after in itertools.pairwise(parts))
    assert all(part.stop % BLOCK == 0 for part in parts[:-1])
    blocks = [-(-(part.stop - part.start) // BLOCK) for part in parts]
    assert max(blocks) - min(blocks) <= 1
    assert min(blocks) > 0 or num_shards > -(-size // BLOCK)


def test_a_slot_has_room_for_its_range_or_for_all_elements_that_are_sent() -> None:
    part = slice(BLOCK, 3 * BLOCK)
    assert slot_format(10 * BLOCK, part, FORMATS["float16"]) == SlotFormat(SlotDtype.FLOAT16, 2 * BLOCK)
    assert slot_format(10 * BLOCK, part, PushConfig(keep=0.1, error_feedback=True)) == SlotFormat(
        SlotDtype.FLOAT32, BLOCK, is_sparse=True
    )
    assert slot_format(10 * BLOCK, part, PushConfig(keep=0.5, error_feedback=True)).capacity == 2 * BLOCK


def test_at_least_one_element_is_sent() -> None:
    assert [num_kept(size, 0.01) for size in (1, 10, 100, 1000, 12345)] == [1, 1, 1, 10, 123]


# --- Sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("memory_type", [ThreadMemory, Unmapped])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_gradient_arrives_rounded_and_measured(
    name: str, memory_type: Callable[[Layout], ThreadMemory], num_shards: int
) -> None:
    size, push = 3 * BLOCK + 7, FORMATS[name]
    path, gradient = GradientPath(size, push, num_shards, memory_type=memory_type), torch.randn(3 * BLOCK + 7)
    before = gradient.clone()
    sent = path.push(gradient)
    expected = gradient.to(getattr(torch, push.dtype)).float()
    assert torch.equal(path.sum, expected) and torch.equal(gradient, before)
    assert sent == Sent(float(expected.abs().max()), BYTES[push.dtype] * size)
    assert path.error.eq(0.0).all()


def test_a_gradient_is_read_in_the_slot_without_a_copy() -> None:
    for push, values_offset in ((FORMATS["bfloat16"], 0), (FORMATS["few"], 64 + 4 * 56 + 32)):
        path = GradientPath(1115, push)
        (gradient,) = path.read(path.writer.write(exact_gradient(1115, 1), 1))
        assert gradient.slot == 1
        beginning = path.memories[0].vector(0, 1, torch.uint8).data_ptr() + path.memories[0].layout.slot_offset(1)
        assert gradient.values.data_ptr() == beginning + values_offset
        if gradient.indices is not None:
            assert gradient.indices.data_ptr() == beginning + 64 and gradient.indices.dtype == torch.int32


@pytest.mark.parametrize("name", WITH_FEEDBACK)
@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_the_sum_and_the_kept_error_add_up_to_the_gradients(name: str, num_shards: int) -> None:
    size = 2 * BLOCK + 900
    path, given = GradientPath(size, FORMATS[name], num_shards), torch.zeros(size)
    for step in range(12):
        gradient = exact_gradient(size, step)
        given += gradient
        path.push(gradient)
        assert torch.equal(path.sum + path.error, given)
        assert path.error.count_nonzero() > 0


@pytest.mark.parametrize("name", WITH_FEEDBACK)
def test_only_rounding_loses_anything_whatever_the_numbers(name: str) -> None:
    size = 5000
    path, given = GradientPath(size, FORMATS[name]), torch.zeros(size, dtype=torch.float64)
    for step in range(30):
        gradient = torch.randn(size, generator=torch.Generator().manual_seed(step)) * 10.0 ** (step % 5 - 3)
        given += gradient
        path.push(gradient)
    torch.testing.assert_close(path.sum.double() + path.error, given, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_several_shards_receive_the_same_as_one(name: str) -> None:
    size = 3 * BLOCK - 5
    one, several = (GradientPath(size, FORMATS[name], num_shards) for num_shards in (1, 3))
    for step in range(5):
        gradient = torch.randn(size, generator=torch.Generator().manual_seed(step))
        assert one.push(gradient) == several.push(gradient)
        assert torch.equal(one.sum, several.sum) and torch.equal(one.error, several.error)


@pytest.mark.parametrize("name", WITH_FEEDBACK)
def test_a_block_of_another_node_receives_the_same(name: str) -> None:
    near, far = (GradientPath(9000, FORMATS[name], 2, memory_type=kind) for kind in (ThreadMemory, Unmapped))
    for step in range(3):
        assert near.push(exact_gradient(9000, step)) == far.push(exact_gradient(9000, step))
    assert torch.equal(near.sum, far.sum) and torch.equal(near.error, far.error)


def test_the_kept_error_continues_in_the_memory_given() -> None:
    error = exact_gradient(5000, 7)
    before = error.clone()
    path = GradientPath(5000, FORMATS["few"], error=error)
    path.push(exact_gradient(5000, 8))
    assert torch.equal(path.sum + error, before + exact_gradient(5000, 8))


# --- Dropping ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(size=st.sampled_from([1, 30, 5000, 170_001]), keep=st.sampled_from([0.001, 0.01, 0.3, 0.9]), seed=st.integers(0, 99))
def test_at_most_the_wanted_number_is_sent_and_nothing_smaller_than_the_rest(size: int, keep: float, seed: int) -> None:
    path = GradientPath(size, PushConfig(keep=keep, error_feedback=True))
    gradient = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    sent = path.push(gradient)
    (received,) = path.read(sent)
    assert received.indices is not None
    indices = received.indices.long()
    # In larger vectors the threshold is found on a sample, so fewer may be sent.
    assert num_kept(size, keep) * (1.0 if size < 50_000 else 0.5) <= len(indices) <= num_kept(size, keep)
    assert sent == Sent(float(gradient.abs().max()), 8 * len(indices))
    assert (indices.diff() > 0).all()
    assert torch.equal(received.values, gradient[indices])
    kept = gradient.clone()
    kept[indices] = 0.0
    assert torch.equal(path.error, kept)
    assert received.values.abs().min() >= kept.abs().max()


def test_at_most_the_wanted_number_of_equal_elements_is_sent() -> None:
    path = GradientPath(1000, PushConfig(keep=0.02, error_feedback=True))
    (received,) = path.read(path.push(torch.ones(1000)))
    assert len(received.values) == 20
    assert torch.equal(path.sum + path.error, torch.ones(1000))


def test_zeros_are_not_sent() -> None:
    path = GradientPath(1000, PushConfig(keep=0.5, error_feedback=True))
    assert path.push(torch.zeros(1000)) == Sent(0.0, 0)
    gradient = torch.zeros(1000)
    gradient[[3, 700]] = torch.tensor([-2.0, 1.0])
    assert path.push(gradient) == Sent(2.0, 16)
    assert torch.equal(path.sum, gradient)


def test_all_elements_sent_may_belong_to_one_shard() -> None:
    size = 3 * BLOCK
    gradient = torch.zeros(size)
    gradient[BLOCK : 2 * BLOCK] = 1.0 + torch.arange(BLOCK)
    path = GradientPath(size, PushConfig(keep=0.9, error_feedback=True), 3)
    sent = path.push(gradient)
    assert [len(received.values) for received in path.read(sent)] == [0, BLOCK, 0]
    assert torch.equal(path.sum, gradient)


def test_an_element_that_is_dropped_repeatedly_is_sent_once_it_has_grown() -> None:
    path = GradientPath(100, PushConfig(keep=0.01, error_feedback=True))
    gradient = torch.zeros(100)
    gradient[[10, 20]] = torch.tensor([1.0, 0.375])
    received = []
    for _ in range(4):
        (few,) = path.read(path.push(gradient))
        assert few.indices is not None
        received.append((few.indices.tolist(), few.values.tolist()))
    assert received == [([10], [1.0]), ([10], [1.0]), ([20], [1.125]), ([10], [2.0])]
    assert path.error[[10, 20]].tolist() == [0.0, 0.375]


# --- Not finite -------------------------------------------------------------------------------------------------------


def refusals(path: GradientPath, push: PushConfig, sent: Sent) -> list[Refusal]:
    store = make_store(asynchronous(), size=len(path.error), optimizer=sgd())
    store.accept([Arrival(0, 0, 0, 1, 0.0)], path.read(sent)[0])
    return [refusal for _, refusal in store.take_refused()]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("at", [0, 4500])
def test_a_gradient_that_is_not_finite_is_refused_and_leaves_the_kept_error_alone(at: int, name: str, value: float) -> None:
    path = GradientPath(5000, FORMATS[name])
    path.push(exact_gradient(5000, 1))
    before = path.error.clone()
    spoilt = exact_gradient(5000, 2)
    spoilt[at] = value
    sent = path.writer.write(spoilt, 1)
    assert not math.isfinite(sent.largest)
    assert refusals(path, FORMATS[name], sent) == [Refusal.NOT_FINITE]
    assert torch.equal(path.error, before)
    good = exact_gradient(5000, 3)
    rest = path.sum + before
    assert refusals(path, FORMATS[name], path.push(good)) == []
    if FORMATS[name].error_feedback:
        assert torch.equal(path.sum + path.error, rest + good)


@pytest.mark.parametrize("num_shards", [2, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_a_gradient_that_is_not_finite_in_one_shard_is_refused_whole(name: str, num_shards: int) -> None:
    for at, value in itertools.product((0, BLOCK, 3 * BLOCK - 1), (math.nan, math.inf)):
        path = GradientPath(3 * BLOCK, FORMATS[name], num_shards)
        spoilt = torch.ones(3 * BLOCK)
        spoilt[at] = value
        assert not math.isfinite(path.writer.write(spoilt, 1).largest)


@pytest.mark.parametrize("name", ["float16", "float16-feedback", "few-float16"])
def test_a_float16_overflow_is_refused_and_not_clipped(name: str) -> None:
    path = GradientPath(5000, FORMATS[name])
    large = torch.full((5000,), 0.25)
    large[4321] = -65520.0
    sent = path.writer.write(large, 1)
    assert sent.largest == math.inf
    assert refusals(path, FORMATS[name], sent) == [Refusal.NOT_FINITE]
    assert path.error.eq(0.0).all()
    large[4321] = -65519.0  # rounds to the largest float16
    sent = path.writer.write(large, 1)
    assert sent.largest == 65504.0 and refusals(path, FORMATS[name], sent) == []
    assert path.error[4321] == (-15.0 if FORMATS[name].error_feedback else 0.0)
