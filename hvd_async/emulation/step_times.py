"""Lengths of the workers' steps: equal in a real run, which idles for the rest of a step, and in a simulated one."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence

import numpy as np

from hvd_async.config import EmulationConfig
from hvd_async.errors import ConfigError
from hvd_async.system.json_text import parse_json

# Draws are made for this many steps at once, for all workers together.
_DRAWS = 1 << 16


class StepTimes:
    """Length of each step of each worker: factor * (base + per unit of weight + per later micro-batch) * spread + pause. For use
    by one thread.

    Random access: the k-th step of a worker depends only on the seed, the number of workers, the worker and k.
    """

    def __init__(
        self, config: EmulationConfig, seed: int, num_workers: int, num_readers: int | None = None, default: float = 0.0
    ) -> None:
        """Prepare the draws and read the trace. `default`: seconds of a step if `config` has none. `num_readers`: how
        many of the workers will be asked for; all by default. Raises `ConfigError` for workers that do not exist, and for
        an unreadable trace."""
        if unknown := [worker for worker in config.slow_workers if not 0 <= worker < num_workers]:
            raise ConfigError(f"emulation.slow_workers: got worker {unknown[0]}, expected 0 to {num_workers - 1}")
        self._factors = [config.slow_workers.get(worker, 1.0) for worker in range(num_workers)]
        self._base = default if config.seconds is None else config.seconds
        self._per_weight = config.seconds_per_weight
        self._trace = None if config.trace is None else read_trace(pathlib.Path(config.trace))
        self._is_random = config.spread != "none" or config.pause_probability > 0.0
        self._config = config
        self._seed = seed % 2**64  # numpy takes no negative seeds
        self._num_workers = num_workers
        rows = max(1, _DRAWS // num_workers)
        self._size = rows * num_workers
        self._uses = rows * (num_workers if num_readers is None else num_readers)
        self._blocks: dict[int, _Block] = {}

    @property
    def typical_seconds(self) -> float:
        """Rough length of a step in seconds."""
        if self._trace is None:
            return self._base
        return sum(map(sum, self._trace)) / sum(map(len, self._trace))

    @property
    def asks_for_weight(self) -> bool:
        """Whether the length of a step depends on its batch."""
        return self._per_weight > 0.0

    def seconds(self, worker: int, step: int, weight: float, num_micro_batches: int = 1) -> float:
        """Return the length of the `step`-th step (0, 1, ...) of `worker` on a batch of `weight`, without pulls between its
        micro-batches. To be called once per step."""
        base = self._base
        if self._trace is not None:
            own = self._trace[worker % len(self._trace)]
            base = own[step % len(own)]
        base += self._config.seconds_per_micro_batch * (num_micro_batches - 1)
        seconds = self._factors[worker] * (base + self._per_weight * weight)
        if not self._is_random:
            return seconds
        number, place = divmod(step * self._num_workers + worker, self._size)
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = _Block(self._config, (self._seed, number), self._size, self._uses)
        block.uses -= 1
        if not block.uses:
            del self._blocks[number]
        if block.pauses is not None:
            return seconds * block.factors[place] + block.pauses[place]
        return seconds * block.factors[place]


class _Block:
    """Factors and pauses of some consecutive steps of all workers."""

    __slots__ = ("factors", "pauses", "uses")

    def __init__(self, config: EmulationConfig, seed: Sequence[int], size: int, uses: int) -> None:
        """Draw them. `uses`: how many of the draws will be read."""
        generator = np.random.default_rng(seed)
        self.uses = uses
        self.factors = _factors(config, generator, size).data
        self.pauses: memoryview | None = None
        if config.pause_probability > 0.0:
            self.pauses = (config.pause_seconds * (generator.random(size) < config.pause_probability)).data


def _factors(
    config: EmulationConfig, generator: np.random.Generator, size: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    deviation = config.deviation
    if config.spread == "log_normal":
        return np.exp(deviation * generator.standard_normal(size) - deviation**2 / 2)
    if config.spread == "gamma":
        return generator.gamma(1 / deviation**2, deviation**2, size)
    return np.ones(size)


def read_trace(path: pathlib.Path) -> list[list[float]]:
    """Return the step times of each traced worker, in the order of worker numbers, from lines
    `{"worker": w, "seconds": s}` or from the arrivals of an event log. Raises `ConfigError` if `path` has none."""
    times: dict[int, list[float]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"emulation.trace: {path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        try:
            fields = parse_json(line)
            if fields.get("event", "arrival") != "arrival":
                continue
            seconds = float(fields["step_seconds"] if "event" in fields else fields["seconds"])
            worker = int(fields["worker"])
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ConfigError(
                f'emulation.trace: {path}:{number}: got {line[:60]!r}, expected {{"worker": 0, "seconds": 0.12}}'
            ) from None
        if not (math.isfinite(seconds) and seconds >= 0.0):
            raise ConfigError(f"emulation.trace: {path}:{number}: got {seconds} seconds, expected 0 or more")
        times.setdefault(worker, []).append(seconds)
    if not times:
        raise ConfigError(f"emulation.trace: {path}: got no step times, expected at least one")
    return [times[worker] for worker in sorted(times)]
