"""Batches of a script by their number, from whatever the script iterates over.

The store gives out numbers of batches, each to one worker, in the order in which workers ask. So a loader must make batch i
on any rank: it is a function of the run's seed and of i, not of how many batches this process has read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from hvd_async.errors import ConfigError
from hvd_async.system.random_numbers import numbers_apart

Batch = Any


class BatchSource(Protocol):
    """Batches by their number."""

    per_epoch: int | None
    """Batches of an epoch; None if only the end of the data tells."""
    notes: Sequence[str]
    """What a user should read before training: ignored options."""

    def batch(self, index: int) -> Batch:
        """Return batch `index`, from 0, across epochs. Raises `StopIteration` at the end of the data."""

    def fingerprint(self) -> str:
        """Return a hash of what is known of the data without reading them."""


def source_of(loader: Any, seed: int) -> BatchSource:
    """Return the source of `loader`: a DataLoader, a sequence of batches, or anything that yields batches.

    Raises `ConfigError` for what cannot be shared among workers.
    """
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        return MapSource(loader, seed)
    if isinstance(loader, DataLoader):
        return StreamSource(loader)
    if hasattr(loader, "__getitem__") and hasattr(loader, "__len__"):
        if not len(loader):
            raise ConfigError("loader: got no batches, expected at least one")
        return ListSource(loader)
    if isinstance(loader, Iterable):
        return StreamSource(loader)
    raise ConfigError(f"loader: got {type(loader).__name__}, expected a DataLoader, a list of batches, or an iterable")


class MapSource:
    """The batches of a DataLoader over a map-style dataset, with its sampler, batch size and collate function.

    The sampler is asked anew for each epoch, with torch's generator seeded by the run's seed and the epoch.
    """

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        """Read nothing yet."""
        sampler = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
        if isinstance(getattr(sampler, "sampler", sampler), DistributedSampler):
            raise ConfigError(
                "loader: got a DistributedSampler, expected another sampler or shuffle=True: the batches are shared out anyway,"
                " each to the worker that is free"
            )
        self._loader = loader
        self._sampler: Any = sampler
        self._seed = seed
        self._epoch = -1
        self._chosen: list[Any] = []
        self.per_epoch: int | None = len(self._of(0))
        if not self.per_epoch:
            raise ConfigError("loader: got no batches, expected at least one")
        ignored = (
            f"loader: num_workers={loader.num_workers} is ignored: each batch is read by the rank that computes it, in its"
            " own process"
        )
        self.notes: Sequence[str] = [ignored] if loader.num_workers else []

    def batch(self, index: int) -> Batch:
        """Return batch `index`."""
        assert self.per_epoch is not None
        epoch, number = divmod(index, self.per_epoch)
        chosen, loader = self._of(epoch)[number], self._loader
        if loader.batch_sampler is None:
            return loader.collate_fn(loader.dataset[chosen])
        return loader.collate_fn([loader.dataset[example] for example in chosen])

    def fingerprint(self) -> str:
        """Return a hash of the numbers of examples and batches."""
        return _hash([len(self._loader.dataset), self.per_epoch])  # type: ignore[arg-type]  # a map-style dataset has a length

    def _of(self, epoch: int) -> list[Any]:
        if epoch != self._epoch:
            inner = getattr(self._sampler, "sampler", self._sampler)
            seed = int.from_bytes(hashlib.sha256(f"{self._seed} {epoch}".encode()).digest()[:7], "little")
            if getattr(inner, "generator", None) is not None:
                inner.generator.manual_seed(seed)
            if hasattr(inner, "set_epoch"):
                inner.set_epoch(epoch)
            with numbers_apart(seed):
                self._chosen = list(self._sampler)
            self._epoch = epoch
        return self._chosen


class ListSource:
    """The batches of a sequence, in its order in each epoch."""

    notes: Sequence[str] = ()

    def __init__(self, batches: Sequence[Batch]) -> None:
        """`batches` stays the caller's."""
        self._batches = batches
        self.per_epoch: int | None = len(batches)

    def batch(self, index: int) -> Batch:
        """Return batch `index`."""
        return self._batches[index % len(self._batches)]

    def fingerprint(self) -> str:
        """Return a hash of the number of batches."""
        return _hash([len(self._batches)])


class StreamSource:
    """The batches of an iterable, each worker's own: batch `index` is the next one, whatever its number."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        """`batches` stays the caller's; its iteration begins with the first batch."""
        self._batches = batches
        self._iterator: Iterator[Batch] | None = None
        self.per_epoch: int | None = None
        self.notes: Sequence[str] = [
            "loader: an iterable without a length: each worker reads its own stream; the run is over when all have ended"
        ]

    def batch(self, index: int) -> Batch:
        """Return the next batch. Raises `StopIteration` at the end."""
        if self._iterator is None:
            self._iterator = iter(self._batches)
        return next(self._iterator)

    def fingerprint(self) -> str:
        """Return a constant: nothing is known."""
        return _hash(["stream"])


def _hash(facts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
