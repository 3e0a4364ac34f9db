"""A block in host and device memory (here both ordinary memory): where its parts lie, and what is copied between the two."""

from __future__ import annotations

import pytest
import torch

from hvd_async.store.serve.device_block import DeviceMemory, DeviceWindow, Reach, device_bytes
from hvd_async.store.wire.layout import NUM_PROVISIONAL, Layout, SlotDtype, SlotFormat, Word
from hvd_async.transport.inprocess import ThreadMemory

SIZE = 5
LAYOUT = Layout(SIZE, num_workers=3, num_buffers=2)


def make(host_slots: list[int], layout: Layout = LAYOUT) -> tuple[ThreadMemory, DeviceMemory, DeviceWindow]:
    """Return the host's block, the block as the store sees it, and the window of a worker that can reach the device."""
    host = ThreadMemory(layout)
    device = torch.zeros(device_bytes(layout), dtype=torch.uint8)
    return host, DeviceMemory(host, device, host_slots), DeviceWindow(host, device)


def test_words_lie_on_the_host_and_vectors_on_the_device() -> None:
    host, memory, window = make([])
    window.store(Word.STOP, 7)
    assert memory.load(Word.STOP) == host.load(Word.STOP) == 7
    for offset in (LAYOUT.published_offset(1), LAYOUT.slot_offset(2)):
        memory.vector(offset).fill_(3.0)
        mapped, got = window.mapped(offset, SIZE, torch.float32), torch.zeros(SIZE)
        window.get(offset, got)
        assert mapped is not None and mapped.tolist() == got.tolist() == [3.0] * SIZE
        assert host.vector(offset).tolist() == [0.0] * SIZE
        window.put(offset, torch.full((SIZE,), 4.0))
        assert memory.vector(offset).tolist() == [4.0] * SIZE


def test_every_byte_of_buffers_and_slots_has_a_place_on_the_device() -> None:
    _, memory, _ = make([])
    last = LAYOUT.slot_offset(LAYOUT.slots) - 4
    assert memory.vector(last, 1).numel() == memory.vector(LAYOUT.published_offset(0), 1).numel() == 1


def test_a_slot_is_copied_to_the_device_only_if_its_worker_writes_to_the_host() -> None:
    host, memory, _ = make([1])
    for slot in range(3):
        host.vector(LAYOUT.slot_offset(slot)).fill_(1.0 + slot)
        memory.bring_in(LAYOUT.slot_offset(slot), LAYOUT.format.num_bytes)
    assert [memory.vector(LAYOUT.slot_offset(slot))[0].item() for slot in range(3)] == [0.0, 2.0, 0.0]


def test_a_slot_of_another_format_is_copied_whole() -> None:
    layout = Layout(SIZE, 1, slot_format=SlotFormat(SlotDtype.BFLOAT16, 3, is_sparse=True))
    host, memory, _ = make([0], layout)
    whole = host.vector(layout.slot_offset(0), layout.format.num_bytes, torch.uint8)
    whole.copy_(torch.arange(whole.numel(), dtype=torch.uint8))
    memory.bring_in(layout.slot_offset(0), layout.format.num_bytes)
    assert torch.equal(memory.vector(layout.slot_offset(0), layout.format.num_bytes, torch.uint8), whole)


@pytest.mark.parametrize("host_slots", [[], [2]])
def test_versions_are_copied_to_the_host_only_if_a_worker_reads_them_there(host_slots: list[int]) -> None:
    host, memory, _ = make(host_slots)
    for version in (2, 3):
        memory.vector(LAYOUT.published_offset(version)).fill_(float(version))
        memory.bring_out(LAYOUT.published_offset(version), 4 * LAYOUT.num_elements)
    values = [host.vector(LAYOUT.published_offset(version))[0].item() for version in (2, 3)]
    assert values == ([2.0, 3.0] if host_slots else [0.0, 0.0])


def test_provisional_parameters_are_copied_to_the_same_place_on_the_host() -> None:
    layout = Layout(SIZE, 2, num_provisional=NUM_PROVISIONAL)
    host, memory, window = make([1], layout)
    offsets = [layout.provisional_offset(number) for number in (1, 2)]
    for number, offset in enumerate(offsets):
        memory.vector(offset).fill_(1.0 + number)
    memory.bring_out(offsets[1], 4 * LAYOUT.num_elements)
    got = torch.zeros(SIZE)
    window.get(offsets[0], got)
    assert got.tolist() == [1.0] * SIZE
    assert [host.vector(offset)[0].item() for offset in offsets] == [0.0, 2.0]


def test_a_worker_writes_directly_if_its_window_reaches_the_device() -> None:
    host, memory, window = make([])
    assert [Reach(each).is_direct for each in (host, window, memory)] == [False, True, True]
