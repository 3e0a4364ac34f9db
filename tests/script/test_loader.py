"""Batches by their number: the same on every rank, each example once an epoch, whatever the loader is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from hvd_async.errors import ConfigError
from hvd_async.script.loader import EndOfStream, ListSource, MapSource, StreamSource, source_of

DATA = TensorDataset(torch.arange(10))


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


def epoch_of(source: Any, epoch: int) -> list[int]:
    size = source.per_epoch
    return [int(x) for index in range(epoch * size, (epoch + 1) * size) for x in source.batch(index)[0]]


@pytest.mark.parametrize("options", [{"shuffle": True}, {"shuffle": True, "generator": torch.Generator()}])
def test_a_shuffled_loader_has_an_order_of_its_own_in_each_epoch_equal_on_all_ranks(options: dict[str, Any]) -> None:
    sources = [source_of(DataLoader(DATA, batch_size=3, **options), seed=1) for _ in range(2)]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    epochs = [epoch_of(sources[0], epoch) for epoch in range(3)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    torch.manual_seed(7)
    assert [int(x) for x in sources[1].batch(5)[0]] == [int(x) for x in sources[0].batch(5)[0]]
    assert epoch_of(source_of(DataLoader(DATA, batch_size=3, shuffle=True), seed=2), 0) != epochs[0]


def test_batch_size_drop_last_collate_and_samplers_are_those_of_the_loader() -> None:
    source = source_of(DataLoader(DATA, batch_size=4, drop_last=True, collate_fn=len), seed=1)
    assert (source.per_epoch, source.batch(1)) == (2, 4)
    source = source_of(DataLoader(DATA, batch_sampler=[[0, 1], [5]]), seed=1)
    assert [source.batch(index)[0].tolist() for index in range(4)] == [[0, 1], [5], [0, 1], [5]]
    source = source_of(DataLoader(DATA, batch_size=None, sampler=[3, 1]), seed=1)
    assert [int(source.batch(index)[0]) for index in range(3)] == [3, 1, 3]


def test_a_list_and_a_stream_give_their_batches_in_order() -> None:
    source = source_of(["a", "b", "c"], seed=1)
    assert isinstance(source, ListSource) and [source.batch(index) for index in (0, 2, 3)] == ["a", "c", "a"]
    for stream in (iter("xy"), DataLoader(Stream(), batch_size=4)):
        source = source_of(stream, seed=1)
        assert isinstance(source, StreamSource) and source.per_epoch is None
        kind = "a DataLoader over an IterableDataset" if isinstance(stream, DataLoader) else "an iterable without a length"
        assert source.kind == kind and source.notes[0].startswith(f"loader: {kind}: each worker reads its own stream once")
        source.batch(7), source.batch(9)
        with pytest.raises(EndOfStream):
            source.batch(11)


def test_an_ignored_option_is_reported() -> None:
    source = source_of(DataLoader(DATA, num_workers=2, collate_fn=lambda rows: rows), seed=1)
    assert isinstance(source, MapSource) and "num_workers=2 is ignored, and each rank reads its own" in source.notes[0]
    assert "cannot be sent to another process" in source.notes[0]


def test_processes_of_a_loader_read_what_is_expected() -> None:
    source = source_of(DataLoader(DATA, batch_size=4, shuffle=True, num_workers=1, prefetch_factor=3), seed=1)
    assert source.num_batches_ahead == 3 and not source.notes
    source.expect([4, 5])
    alone = source_of(DataLoader(DATA, batch_size=4, shuffle=True), seed=1)
    for index in (4, 5, 2):
        assert torch.equal(source.batch(index)[0], alone.batch(index)[0])
    source.close()


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (3, "loader: got 3, expected a DataLoader, a list of batches, or an iterable"),
        (None, "loader: got None, expected a DataLoader, a list of batches, or an iterable"),
        ("text", "loader: got 'text', expected"),
        ({"x": 1}, "loader: got dict, expected"),
        (list, "loader: got the class list, expected"),
        ([], "loader: got no batches"),
        (DataLoader(DATA, batch_size=99, drop_last=True), "loader: got no batches"),
        (
            DataLoader(Stream(), num_workers=1, collate_fn=lambda rows: rows),
            "loader: got num_workers=1, expected 0: it cannot be sent to another process",
        ),
        (DataLoader(DATA, sampler=DistributedSampler(DATA, num_replicas=2, rank=0)), "loader: got a DistributedSampler"),
    ],
)
def test_what_cannot_be_shared_is_refused(loader: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source_of(loader, seed=1)
