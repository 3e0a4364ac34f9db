"""Measurements: competitors timed in turns, medians and quartiles, and figures beside their limits and targets."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, quartiles (of fewer than 4 values: the extremes) and count of repeated measurements."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarise `values`, at least one."""
        low, high = min(values), max(values)
        if len(values) >= 4:
            low, _, high = statistics.quantiles(values, method="inclusive")
        return cls(statistics.median(values), low, high, len(values))

    def scaled(self, factor: float) -> Spread:
        """Return the spread in another unit: all values times `factor`."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.count)


def timed(action: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Return the seconds that `action` takes."""
    begin = clock()
    action()
    return clock() - begin


@dataclasses.dataclass(frozen=True)
class Effort:
    """Length of a measurement: `repeats` turns, fewer if they would take more than `seconds`, after `warm_ups` turns."""

    repeats: int
    seconds: float
    warm_ups: int = 1


def take_turns(
    turn: Callable[[], Mapping[str, float]], effort: Effort, clock: Clock = time.perf_counter
) -> dict[str, Spread]:
    """Repeat `turn`, in which each competitor runs once (A B A B ...). `turn` returns the seconds of each by name.

    A disturbance of the machine that lasts longer than a turn thus affects all competitors alike. Stops early if another
    turn as long as the last would exceed `effort.seconds`, warm-ups included, but not before one turn is measured.
    """
    begin = clock()
    for _ in range(effort.warm_ups):
        turn()
    taken: dict[str, list[float]] = {}
    for _ in range(effort.repeats):
        started = clock()
        for name, seconds in turn().items():
            taken.setdefault(name, []).append(seconds)
        now = clock()
        if now - begin + (now - started) > effort.seconds:
            break
    return {name: Spread.of(values) for name, values in taken.items()}


@dataclasses.dataclass(frozen=True)
class BenchTarget:
    """Target of a figure: a ratio to its limit of at least `bound`, or a value of at most `bound`."""

    kind: Literal["ratio at least", "value at most"]
    bound: float


@dataclasses.dataclass(frozen=True)
class Limit:
    """The bound or the competitor of a figure, measured in the same turns and in the figure's unit."""

    name: str
    spread: Spread


@dataclasses.dataclass(frozen=True)
class BenchFigure:
    """One measured figure.

    Attributes:
        unit: `ms`, `steps/s`, `% of a core`, ...
        ratio: 1 if the figure equals its limit, above 1 if it is better, whatever the unit; None without a limit.
    """

    name: str
    value: Spread
    unit: str
    limit: Limit | None = None
    ratio: float | None = None
    target: BenchTarget | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without a target."""
        if self.target is None:
            return None
        if self.target.kind == "value at most":
            return self.value.median <= self.target.bound
        assert self.ratio is not None  # a figure with such a target has a limit
        return self.ratio >= self.target.bound

    def to_json(self) -> dict[str, Any]:
        """Return the figure as plain data, with `met`."""
        return {**dataclasses.asdict(self), "met": self.met}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BenchFigure:
        """Return the figure from the data of `to_json`."""
        limit, target = data["limit"], data["target"]
        return cls(
            name=data["name"],
            value=Spread(**data["value"]),
            unit=data["unit"],
            limit=Limit(limit["name"], Spread(**limit["spread"])) if limit else None,
            ratio=data["ratio"],
            target=BenchTarget(**target) if target else None,
        )


def duration(
    name: str, seconds: Spread, limit: tuple[str, Spread] | None = None, target: BenchTarget | None = None
) -> BenchFigure:
    """Return a figure of time, in milliseconds. `limit`: name and seconds. The ratio is that of the two medians."""
    bound = None if limit is None else Limit(limit[0], limit[1].scaled(1e3))
    ratio = None if limit is None else limit[1].median / seconds.median
    return BenchFigure(name, seconds.scaled(1e3), "ms", bound, ratio, target)


def rate(name: str, value: Spread, unit: str, limit: tuple[str, Spread], target: BenchTarget | None = None) -> BenchFigure:
    """Return a figure of which more is better. `limit`: name and value, in `unit`. The ratio is that of the two medians."""
    return BenchFigure(name, value, unit, Limit(*limit), value.median / limit[1].median, target)
