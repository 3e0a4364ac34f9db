"""Options of benchmarks on the command line, and their defaults."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from hvd_async.errors import ConfigError
from hvd_async.system.limits import MOST_MICRO_BATCHES

MODELS = ("multi30k", "base")
_MOST_SIZES = 10


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of one benchmark.

    Attributes:
        sizes: lengths of the parameter vector in millions.
        workers: ranks that train, beside the store.
        repeats: maximum number of turns of each measurement.
        threads: threads for arithmetic and copies of each rank.
        seconds: time limit of each measurement (for `scaling`: of all measurements together).
        model: model of `step`, one of `MODELS`.
        step_seconds: sleep of an emulated step.
        device: device of `store` and of the worker of `step`: `cpu`, `cuda` or `cuda:<index>`.
        config: YAML file of a run: for `step`, whose task is measured, in place of `model`; for `translation`, whose model and
            corpus are; None: Multi30k's size, generated text.
        micro_batches: parts into which `step` divides its batch in a second measurement; 1: none.
        joeynmt: a Python that has JoeyNMT, whose training steps `translation` measures beside ours.
    """

    sizes: tuple[float, ...] = (1.0, 25.0, 100.0)
    workers: int = 1
    repeats: int = 15
    threads: int = 1
    seconds: float = 20.0
    model: str = "multi30k"
    step_seconds: float = 0.1
    device: str = "cpu"
    config: str | None = None
    micro_batches: int = 1
    joeynmt: str | None = None

    def arguments(self, takes: frozenset[str]) -> tuple[str, ...]:
        """Return the flags that pass these options to a rank, for the options that its benchmark `takes`."""
        words: list[str] = []
        for name in sorted(takes):
            value = getattr(self, name)
            if value is None or (name == "model" and self.config is not None):  # which names a model itself
                continue
            text = ",".join(f"{size:g}" for size in value) if name == "sizes" else str(value)
            words += [_flag(name), text]
        return tuple(words)


def make_options(benchmark: str, defaults: Options, takes: frozenset[str], given: dict[str, Any]) -> Options:
    """Return `defaults` with the values `given` on the command line (None: not given; sizes as text).

    Raises `ConfigError` for a value out of its range, and for a flag that `benchmark` does not take.
    """
    changes = {name: value for name, value in given.items() if value is not None}
    if foreign := sorted(changes.keys() - takes):
        known = ", ".join(_flag(name) for name in sorted(takes))
        raise ConfigError(
            f"{_flag(foreign[0])}: bench {benchmark} does not take it; it takes {known}, and the flags of all benchmarks"
        )
    if "sizes" in changes:
        changes["sizes"] = parse_sizes(changes["sizes"])
    for name in ("workers", "repeats", "threads"):
        if changes.get(name, 1) < 1:
            raise ConfigError(f"{_flag(name)}: got {changes[name]}, expected a whole number >= 1")
    if not 1 <= changes.get("micro_batches", 1) <= MOST_MICRO_BATCHES:
        raise ConfigError(
            f"--micro-batches: got {changes['micro_batches']}, expected a whole number from 1 to {MOST_MICRO_BATCHES}"
        )
    for name in ("seconds", "step_seconds"):
        if not 0.0 < changes.get(name, 1.0) < math.inf:
            raise ConfigError(f"{_flag(name)}: got {changes[name]:g}, expected a number of seconds > 0")
    return dataclasses.replace(defaults, **changes)


def parse_sizes(text: str) -> tuple[float, ...]:
    """Return millions of parameters from a list such as `1,25,100`. Raises `ConfigError` for anything else."""
    sizes: list[float] = []
    for word in text.split(","):
        try:
            size = float(word)
        except ValueError:
            size = math.nan
        if not 1e-3 <= size <= 1e5:
            raise ConfigError(f"--sizes: got {word.strip()!r}, expected millions of parameters, such as 1,25,100")
        sizes.append(size)
    if len(sizes) > _MOST_SIZES:
        raise ConfigError(f"--sizes: got {len(sizes)} sizes, expected at most {_MOST_SIZES}")
    return tuple(sizes)


def num_elements(size: float) -> int:
    """Return the number of parameters of a vector of `size` millions."""
    return round(size * 1e6)


def own_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
