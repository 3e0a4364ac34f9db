"""Hashes of parameters, which show whether a replayed run is equal to the last bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import torch

from hvd_async.runs.events import Events
from hvd_async.runs.recorder_context import RunContext, VersionCopies
from hvd_async.runs.recorder_part import RunPart
from hvd_async.store.arrival import Update
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.system.background_writer import BackgroundWriter


def hash_of(vector: torch.Tensor) -> str:
    """Return BLAKE2b over the bytes of `vector` ([size] float32, on the CPU, gaps between tensors included), 32 hex
    digits."""
    return hashlib.blake2b(vector.numpy().data, digest_size=16).hexdigest()


class ParameterHashes:
    """Computes hashes in a background thread, and returns them when they are done. Used by one other thread."""

    def __init__(self, submit: Callable[..., Future[dict[str, str]]]) -> None:
        """`submit(function, *arguments, num_bytes=...)` runs a call in the background, which uses `num_bytes` until then."""
        self._submit = submit
        self._under_way: list[tuple[int, Future[dict[str, str]]]] = []
        self._newest = -1

    def take(self, version: int, read: Callable[[str], torch.Tensor], names: Mapping[str, str]) -> None:
        """Begin to hash the vectors of `version`, unless it was the last version to be hashed.

        `names`: field of the result -> name of a vector. `read(name)` returns a vector on the CPU that stays unchanged.
        """
        if version == self._newest:
            return
        self._newest = version
        vectors = {field: read(name) for field, name in names.items()}
        num_bytes = sum(vector.nbytes for vector in vectors.values())
        self._under_way.append((version, self._submit(_hash_all, vectors, num_bytes=num_bytes)))

    def finished(self, *, wait: bool = False) -> Iterator[dict[str, Any]]:
        """Yield finished hashes in order, each once, as `version` and the fields. `wait`: wait for all of them."""
        while self._under_way and (wait or self._under_way[0][1].done()):
            version, work = self._under_way.pop(0)
            yield {"version": version, **work.result()}


class Hashes(RunPart):
    """Writes hashes of the parameters into the event log, every `training.hash_every` versions."""

    def __init__(self, run: RunContext, writer: BackgroundWriter, copies: VersionCopies, events: Events) -> None:
        """All arguments stay the caller's."""
        self._every = run.config.training.hash_every
        average = {"average": "average"} if run.config.optimizer.average_decay else {}
        self._names = {"hash": "parameters", **average}
        self._waits = run.is_simulated  # so that the whole log is determined by the seed
        self._copies = copies
        self._events = events
        self._hashes = ParameterHashes(writer.submit)
        self._store: ParameterStore

    def started(self, store: ParameterStore) -> None:
        """Hash the first version of this process."""
        self._store = store
        self.take()

    def updated(self, update: Update) -> None:
        """Hash the version if it is due, and log finished hashes."""
        if self._every and update.version % self._every == 0:
            self.take()
        self.log(wait=self._waits)

    def take(self) -> None:
        """Begin to hash the store's version if hashes are configured; each version at most once."""
        if self._every:
            self._hashes.take(self._store.version, self._copies.read, self._names)

    def log(self, *, wait: bool = False) -> None:
        """Log the finished hashes. `wait`: wait for all of them."""
        for fields in self._hashes.finished(wait=wait):
            self._events.write("parameter_hash", **fields)


def _hash_all(vectors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    return {field: hash_of(vector) for field, vector in vectors.items()}
