"""The objects shared by all parts of the recorder: the run, its clock, and copies of the vectors of one version."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hvd_async.config import RunConfig
from hvd_async.runs.folder import RunFolder
from hvd_async.runs.progress import Progress
from hvd_async.runs.provenance import Provenance
from hvd_async.store.parameter_store import ParameterStore
from hvd_async.tasks.task import Task
from hvd_async.vectors.flat import FlatParameters


@dataclass(frozen=True)
class RunContext:
    """The run to record. The objects stay the caller's.

    `clock` returns the seconds to record. `provenance`: hosts, devices and software; by default, this process alone.
    `is_simulated`: the seconds are virtual, as `start` events report.
    """

    folder: RunFolder
    config: RunConfig
    task: Task
    flat: FlatParameters
    progress: Progress
    clock: Callable[[], float] = time.monotonic
    provenance: Provenance | None = None
    is_simulated: bool = False

    def describe_strategy(self) -> dict[str, Any]:
        """Return the settings of the strategy that apply, as plain data for `start` events and the summary."""
        strategy = self.config.strategy.model_dump()
        kind = strategy.pop("kind")
        simulated = {"simulated": True} if self.is_simulated else {}
        if not self.config.strategy.is_async:
            return {**simulated, "strategy": kind, "options": {"reduction": strategy["reduction"]}}
        return {
            **simulated,
            "strategy": kind,
            "options": strategy,
            "push": self.config.push.model_dump(),
            "store": self.config.store.model_dump(),
        }


class TrainingClock:
    """Clock of seconds of training, earlier processes of the run included; stopped while the run does not train."""

    def __init__(self, read: Callable[[], float]) -> None:
        """Set the clock to 0, stopped. `read` returns the time."""
        self._read = read
        self._before = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self._before + (0.0 if self._started is None else self._read() - self._started)

    @property
    def is_running(self) -> bool:
        """Whether the clock runs, which means that the run trains."""
        return self._started is not None

    def restore(self, seconds: float) -> None:
        """Set the clock to `seconds`, at which an earlier process stopped."""
        self._before = seconds

    def start(self) -> None:
        """Start the clock."""
        self._started = self._read()

    def stop(self) -> None:
        """Stop the clock."""
        self._before, self._started = self.seconds, None


class VersionCopies:
    """Copies of the store's vectors at one version, one copy of each for all files that are written of this version.

    The copies are on the CPU, so the store's next versions, and on a GPU its stream, do not wait for the writing thread.
    """

    def __init__(self) -> None:
        """Start without copies and without a store."""
        self._store: ParameterStore
        self._copies: dict[str, torch.Tensor] = {}

    def bind(self, store: ParameterStore) -> None:
        """Set the source of copies to `store`, which stays the caller's."""
        self._store = store

    def read(self, name: str) -> torch.Tensor:
        """Return the copy of vector `name`, `parameters` or `average` (their moving average): [size], float32, on the
        CPU."""
        if name not in self._copies:
            live = self._store.parameters if name == "parameters" else self._store.evaluated_parameters
            self._copies[name] = live.to("cpu", copy=True)
        return self._copies[name]

    def of(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the existing copy for `name`, else a new copy of `tensor`."""
        return self._copies[name] if name in self._copies else tensor.to("cpu", copy=True)

    def clear(self) -> None:
        """Drop the copies, before the next version is made."""
        self._copies.clear()
