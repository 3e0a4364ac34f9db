"""Schedules over versions: the learning rate and the number of arrivals per update. Pure functions."""

from __future__ import annotations

import math

from hvd_async.config import ScheduleConfig, StrategyConfig

# Terms of the series of the sine; those after them are below the last bit up to half a right angle.
_TERMS = 9


def rate_factor(schedule: ScheduleConfig, version: int, weight: float) -> float:
    """Return the learning rate of the update that makes `version` (1, 2, ...), up to which batches of `weight` were seen, as
    a share of the highest.

    Inverse square root after Vaswani et al. (2017), section 5.3, scaled so that the highest is reached when warm-up ends.
    """
    position = version if schedule.unit == "versions" else weight
    if position < schedule.warmup:
        return position / schedule.warmup
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind in ("linear", "cosine"):
        assert schedule.total is not None  # the configuration asks for it
        left = max(0.0, (schedule.total - position) / (schedule.total - schedule.warmup))
        return left if schedule.kind == "linear" else schedule.final + (1.0 - schedule.final) * _half_cosine(left)
    return math.sqrt(max(1, schedule.warmup) / max(1, position))


def _half_cosine(left: float) -> float:
    """Return (1 - cos(pi * left)) / 2, which rises from 0 to 1 as `left` does, right to about the last bit.

    It is sin(pi / 2 * left) squared, by the sine's series: products and sums are alike on every processor, while the last bit
    of `math.cos` depends on the processor, and ranks of a synchronous strategy compute the rate each for itself.
    """
    angle = math.pi / 2.0 * min(left, 1.0 - left)
    term = sine = angle
    for number in range(1, _TERMS):
        term *= -angle * angle / (2 * number * (2 * number + 1))
        sine += term
    return sine * sine if left < 0.5 else 1.0 - sine * sine


def is_synchronous(strategy: StrategyConfig, version: int) -> bool:
    """Whether the update on top of `version` is made in lock-step: every worker waits for the update."""
    return strategy.lockstep or version < strategy.synchronous_versions


def arrivals_needed(strategy: StrategyConfig, version: int, num_active: int) -> int:
    """Return N for the update on top of `version` with `num_active` workers in the run. At least 1."""
    wanted: int | str
    if version < strategy.synchronous_versions:
        wanted = "workers"
    elif isinstance(strategy.arrivals_per_update, tuple):
        wanted = next(e.arrivals for e in reversed(strategy.arrivals_per_update) if e.version <= version)
    else:
        wanted = strategy.arrivals_per_update
    if wanted == "workers":
        return max(1, num_active)
    # In lock-step there are at most as many arrivals as workers: an update with a larger N would never be complete.
    return max(1, min(int(wanted), num_active)) if is_synchronous(strategy, version) else int(wanted)


def most_arrivals(strategy: StrategyConfig, num_workers: int) -> int:
    """Return the highest N of a run with up to `num_workers` workers."""
    given = strategy.arrivals_per_update
    wanted = [entry.arrivals for entry in given] if isinstance(given, tuple) else [given]
    return max(num_workers, *(each for each in wanted if isinstance(each, int)), 1)


def versions_made(strategy: StrategyConfig, num_batches: int, num_workers: int) -> int:
    """Return how many versions `num_batches` batches make from the beginning of a run on, while all workers take part."""
    if not strategy.is_async:
        return math.ceil(num_batches / num_workers)
    made, left = 0, num_batches
    while left > 0:
        left -= arrivals_needed(strategy, made, num_workers)
        made += 1
    return made
