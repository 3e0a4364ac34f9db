"""Idling: a worker sleeps after its real step until the emulated length is over. A sleeping rank uses no core."""

from __future__ import annotations

import time

from hvd_async.config import EmulationConfig
from hvd_async.emulation.step_times import StepTimes
from hvd_async.errors import ConfigError


def check_emulation(config: EmulationConfig, num_workers: int) -> None:
    """Raise `ConfigError` for workers that do not exist, for an unreadable trace, and for what can be simulated but not
    emulated, since a real step cannot be made shorter."""
    StepTimes(config, 0, num_workers)
    needs_length = {
        "spread": config.spread != "none",
        "seconds_per_weight": config.seconds_per_weight > 0.0,
        "seconds_per_micro_batch": config.seconds_per_micro_batch > 0.0,
    }
    for key, is_set in needs_length.items():
        if is_set and config.seconds is None and config.trace is None:
            raise ConfigError(
                f"emulation.{key}: got {getattr(config, key)} in a real run without emulation.seconds,"
                " expected emulation.seconds longer than the real step, which cannot be made shorter"
            )


class Emulation:
    """Idling that makes the steps of one worker last as long as the configuration says.

    Attributes:
        is_active: whether steps may last longer than their real work.
        num_overrun: steps whose real work took longer than the emulated length; they are not shortened.
        num_steps: all steps so far of this process.
    """

    def __init__(
        self, config: EmulationConfig, worker: int | None, seed: int, num_workers: int, first_step: int = 0
    ) -> None:
        """Prepare the lengths for `worker`, this rank's number among the workers (None for a rank that only stores).
        `first_step` is the number of its steps that other processes have done. Raises `ConfigError`; see
        `check_emulation`."""
        self._first_step = first_step
        self.num_steps = 0
        self.num_overrun = 0
        self._worker = worker
        self._has_length = config.seconds is not None or config.trace is not None
        self.is_active = self._has_length or bool(config.slow_workers) or config.pause_probability > 0.0
        self._factor = 1.0 if worker is None else config.slow_workers.get(worker, 1.0)
        self._times = StepTimes(config, seed, num_workers, num_readers=1)
        self._drawn: float | None = None
        self._idled = 0.0  # in this step

    def delay(self, seconds: float, weight: float, share: float = 1.0, num_micro_batches: int = 1) -> None:
        """Idle for the rest of a step, or of its first `share`, which has taken `seconds` so far, idling included. `weight` and
        `num_micro_batches`: of the whole batch; those of the first call for a step count."""
        if self._worker is None:
            return
        if self._drawn is None:
            step = self._first_step + self.num_steps
            self._drawn = self._times.seconds(self._worker, step, weight, num_micro_batches)
        wanted = share * self._drawn
        if not self._has_length:
            wanted += self._factor * (seconds - self._idled)
        if wanted > seconds:
            self._idled += wanted - seconds
            time.sleep(wanted - seconds)  # the idling is the purpose
        elif wanted < seconds and share == 1.0:
            self.num_overrun += 1
        if share == 1.0:
            self.num_steps += 1
            self._drawn, self._idled = None, 0.0
