"""Virtual time: events happen in the order of their times; events of equal time, in an order drawn from the seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any

_Event = tuple[float, float, Callable[[Any], None], Any]


class Clock:
    """Clock that runs actions at their times. Ties are shuffled, so that no result depends on the order of insertion.

    Ends of steps are many and far ahead: they lie in buckets of time, unsorted until their bucket is next. All other events
    are near and few.

    Attributes:
        now: seconds since the start.
    """

    def __init__(self, seed: int, bucket_seconds: float = 1e-3) -> None:
        """Begin with no events. `bucket_seconds` affects only the speed; a few dozen ends of steps per bucket are best."""
        self.now = 0.0
        self._draw = random.Random(seed).random  # decides between events of the same time
        self._traffic: list[_Event] = []  # a heap of the events from `at`
        self._steps: list[_Event] = []  # a heap of the steps that end up to the current bucket
        self._per_second = 1.0 / bucket_seconds
        self._current = -1
        self._buckets: dict[int, list[_Event]] = {}
        self._numbers: list[int] = []  # a heap of the numbers of the buckets

    def read(self) -> float:
        """Return `now`, for callers that need a function."""
        return self.now

    def at(self, time: float, action: Callable[[Any], None], argument: Any) -> None:
        """Call `action(argument)` at `time`, which is not before `now`."""
        heappush(self._traffic, (time, self._draw(), action, argument))

    def at_end_of_step(self, time: float, action: Callable[[Any], None], argument: Any) -> None:
        """Call `action(argument)` at `time`, as `at` does; fast for events that are later than most others."""
        number = int(time * self._per_second)
        event = (time, self._draw(), action, argument)
        if number <= self._current:
            heappush(self._steps, event)
        elif number in self._buckets:
            self._buckets[number].append(event)
        else:
            self._buckets[number] = [event]
            heappush(self._numbers, number)

    def run(self) -> None:
        """Let time pass until no event is left."""
        traffic, numbers, steps = self._traffic, self._numbers, self._steps
        while True:
            if not steps and numbers:
                self._current = heappop(numbers)
                steps = self._steps = self._buckets.pop(self._current)
                heapify(steps)
            if traffic and (not steps or traffic[0] < steps[0]):
                self.now, _, action, argument = heappop(traffic)
            elif steps:
                self.now, _, action, argument = heappop(steps)
            else:
                return
            action(argument)
