"""Batches of a script by their number, from whatever the script iterates over.

The store gives out numbers of batches, each to one worker, in the order in which workers ask. So a loader must make batch i
on any rank: it is a function of the run's seed and of i, not of how many batches this process has read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from hvd_async.errors import ConfigError
from hvd_async.system.random_numbers import numbers_apart
from hvd_async.tasks.reading import WHOLE, BatchReader, Reading, map_tensors, obstacle_to, start_fork_server
from hvd_async.tasks.user_values import describe_value

Batch = Any


class EndOfStream(Exception):
    """A stream has no more batches. Not `StopIteration`, which a dataset might raise by mistake."""


class BatchSource(Protocol):
    """Batches by their number."""

    per_epoch: int | None
    """Batches of an epoch; None if only the end of the data tells."""
    notes: Sequence[str]
    """What a user should read before training: ignored options."""

    def batch(self, index: int) -> Batch:
        """Return batch `index`, from 0, across epochs. Raises `EndOfStream` at the end of a stream."""

    num_batches_ahead: int
    """Batches that a rank should know ahead of time; 0: none."""

    def expect(self, indices: Sequence[int]) -> None:
        """Learn the batches that this rank will ask for next, in order. Does not wait."""

    def close(self) -> None:
        """End what reads ahead of time."""

    def fingerprint(self) -> str:
        """Return a hash of what is known of the data without reading them."""


class _ReadsWhenAsked:
    """Reads nothing ahead of time."""

    num_batches_ahead = 0

    def expect(self, indices: Sequence[int]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def source_of(loader: Any, seed: int) -> BatchSource:
    """Return the source of `loader`: a DataLoader, a sequence of batches, or anything that yields batches.

    Raises `ConfigError` for what cannot be shared among workers.
    """
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        return MapSource(loader, seed)
    if isinstance(loader, DataLoader):
        return StreamSource(loader)
    if isinstance(loader, type | str | bytes | Mapping):
        raise ConfigError(f"loader: got {describe_value(loader)}, expected a DataLoader, a list of batches, or an iterable")
    if hasattr(loader, "__getitem__") and hasattr(loader, "__len__"):
        if not len(loader):
            raise ConfigError("loader: got no batches, expected at least one")
        return ListSource(loader)
    if isinstance(loader, Iterable):
        return StreamSource(loader)
    raise ConfigError(f"loader: got {describe_value(loader)}, expected a DataLoader, a list of batches, or an iterable")


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
        self._epochs: dict[int, list[Any]] = {}
        self.per_epoch: int | None = len(self._of(0))
        if not self.per_epoch:
            raise ConfigError("loader: got no batches, expected at least one")
        self._pins = loader.pin_memory and torch.cuda.is_available()
        reading = Reading(loader.dataset, loader.collate_fn, is_batched=loader.batch_sampler is not None, seed=seed)
        self._reader = BatchReader(
            reading,
            loader.num_workers,
            loader.worker_init_fn,
            each_ahead=loader.prefetch_factor or 2,
            timeout=loader.timeout or None,
        )
        self.num_batches_ahead = self._reader.num_ahead
        obstacle = self._reader.obstacle
        ignored = f"loader: num_workers={loader.num_workers} is ignored, and each rank reads its own batches: {obstacle}"
        self.notes: Sequence[str] = [ignored] if obstacle else []

    def batch(self, index: int) -> Batch:
        """Return batch `index`."""
        batch = self._reader.read(index, self._chosen(index))
        return map_tensors(batch, lambda tensor: tensor.pin_memory(), "pin_memory") if self._pins else batch

    def expect(self, indices: Sequence[int]) -> None:
        """Let the loader's processes begin to read the batches `indices`."""
        self._reader.expect((index, self._chosen(index), WHOLE) for index in indices)

    def close(self) -> None:
        """End the loader's processes."""
        self._reader.close()

    def fingerprint(self) -> str:
        """Return a hash of the numbers of examples and batches."""
        return _hash([len(self._loader.dataset), self.per_epoch])  # type: ignore[arg-type]  # a map-style dataset has a length

    def _chosen(self, index: int) -> Any:
        assert self.per_epoch is not None
        epoch, number = divmod(index, self.per_epoch)
        return self._of(epoch)[number]

    def _of(self, epoch: int) -> list[Any]:
        """Return the choices of the sampler in `epoch`; those of the last two epochs asked for are kept."""
        if epoch not in self._epochs:
            inner = getattr(self._sampler, "sampler", self._sampler)
            seed = int.from_bytes(hashlib.sha256(f"{self._seed} {epoch}".encode()).digest()[:7], "little")
            if getattr(inner, "generator", None) is not None:
                inner.generator.manual_seed(seed)
            if hasattr(inner, "set_epoch"):
                inner.set_epoch(epoch)
            with numbers_apart(seed):
                chosen = list(self._sampler)
            if epoch and len(chosen) != self.per_epoch:
                raise ConfigError(
                    f"loader: got {len(chosen)} batches in epoch {epoch}, expected {self.per_epoch} as in the first: batches have"
                    " their numbers across epochs; use drop_last, or an iterable"
                )
            while len(self._epochs) > 1:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = chosen
        return self._epochs[epoch]


class ListSource(_ReadsWhenAsked):
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


class StreamSource(_ReadsWhenAsked):
    """The batches of an iterable, each worker's own: batch `index` is the next one, whatever its number."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        """`batches` stays the caller's; its iteration begins with the first batch. The processes of a DataLoader come from a
        fork server, since a fork of a process in which MPI runs may crash."""
        self._batches = batches
        if isinstance(batches, DataLoader) and batches.num_workers:
            if obstacle := obstacle_to((batches.dataset, batches.collate_fn, batches.worker_init_fn)):
                raise ConfigError(f"loader: got num_workers={batches.num_workers}, expected 0: {obstacle}")
            batches.multiprocessing_context = "forkserver"
            start_fork_server()
        self._iterator: Iterator[Batch] | None = None
        self.per_epoch: int | None = None
        self.kind = (
            "a DataLoader over an IterableDataset" if isinstance(batches, DataLoader) else "an iterable without a length"
        )
        self.notes: Sequence[str] = [
            f"loader: {self.kind}: each worker reads its own stream once, whatever `epochs` says; several train on the same"
            " examples unless the script gives each its part (run.worker, run.num_workers); the run is over when all have ended"
        ]

    def batch(self, index: int) -> Batch:
        """Return the next batch. Raises `EndOfStream` at the end."""
        if self._iterator is None:
            self._iterator = iter(self._batches)
        try:
            return next(self._iterator)
        except StopIteration:
            raise EndOfStream from None

    def close(self) -> None:
        """End the loader's processes, if it has any. Waits for them a little."""
        self._iterator = None

    def fingerprint(self) -> str:
        """Return a constant: nothing is known."""
        return _hash(["stream"])


def _hash(facts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
