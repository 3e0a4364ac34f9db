"""What a measurement is: competitors timed in turns, medians and spread, and a figure beside its limit and its target."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

Clock = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing: their median, their quartiles (of fewer than 4: the extremes), how many."""

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
        """The same in another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.count)


def timed(action: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds that `action` takes."""
    begin = clock()
    action()
    return clock() - begin


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure: `repeats` turns, fewer where they would take more than `seconds`; `warm_ups` more before them."""

    repeats: int
    seconds: float
    warm_ups: int = 1


def take_turns(
    turn: Callable[[], Mapping[str, float]], effort: Effort, clock: Clock = time.perf_counter
) -> dict[str, Spread]:
    """Repeat `turn`, in which each competitor runs once and which returns the seconds of each by name (A B A B ...).

    So whatever disturbs the machine for longer than a turn disturbs all of them alike. Stops early when another turn as long
    as the last would pass `effort.seconds`, warm-ups included, but not before one turn is measured.
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
    """What a figure is to reach: a ratio to its limit of at least `bound`, or a value of at most `bound`."""

    kind: Literal["ratio at least", "value at most"]
    bound: float


@dataclasses.dataclass(frozen=True)
class Limit:
    """What bounds a figure, or what it competes with, measured in the same turns and in the figure's unit."""

    name: str
    spread: Spread


@dataclasses.dataclass(frozen=True)
class BenchFigure:
    """One measured thing.

    Attributes:
        unit: `ms`, `steps/s`, `% of a core`, ...
        ratio: 1 where the figure is as good as its limit, above 1 where it is better, whatever the unit; None without one.
    """

    name: str
    value: Spread
    unit: str
    limit: Limit | None = None
    ratio: float | None = None
    target: BenchTarget | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        if self.target.kind == "value at most":
            return self.value.median <= self.target.bound
        assert self.ratio is not None  # whoever sets such a target gives a limit
        return self.ratio >= self.target.bound

    def to_json(self) -> dict[str, Any]:
        """Plain data, with `met`."""
        return {**dataclasses.asdict(self), "met": self.met}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BenchFigure:
        """The inverse of `to_json`."""
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
    """A figure of time, in milliseconds; `limit`: its name and its seconds. The ratio is that of the two medians."""
    bound = None if limit is None else Limit(limit[0], limit[1].scaled(1e3))
    ratio = None if limit is None else limit[1].median / seconds.median
    return BenchFigure(name, seconds.scaled(1e3), "ms", bound, ratio, target)


def rate(name: str, value: Spread, unit: str, limit: tuple[str, Spread], target: BenchTarget | None = None) -> BenchFigure:
    """A figure of which more is better; `limit` in the same unit. The ratio is that of the two medians."""
    return BenchFigure(name, value, unit, Limit(*limit), value.median / limit[1].median, target)
