"""Virtual time: what is due happens in the order of its time; what is due at the same time, in an order drawn from the seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any

_Event = tuple[float, float, Callable[[Any], None], Any]


class Clock:
    """Runs actions at their times. Ties are shuffled, so that nothing comes to depend on who was listed first.

    Ends of steps are many and far off: they lie in buckets of time, unsorted until their bucket is the next. Everything else is
    soon, and few at a time.

    Attributes:
        now: seconds since the start.
    """

    def __init__(self, seed: int, bucket_seconds: float = 1e-3) -> None:
        """Nothing is due yet. `bucket_seconds` decides nothing but the speed; best are a few dozen ends of steps in each."""
        self.now = 0.0
        self._draw = random.Random(seed).random  # decides between events of the same time
        self._traffic: list[_Event] = []  # a heap of what `at` was given
        self._steps: list[_Event] = []  # a heap of the steps that end up to the current bucket
        self._per_second = 1.0 / bucket_seconds
        self._current = -1
        self._buckets: dict[int, list[_Event]] = {}
        self._numbers: list[int] = []  # a heap of those buckets

    def read(self) -> float:
        """`now`, for those who ask for the time by a call."""
        return self.now

    def at(self, time: float, action: Callable[[Any], None], argument: Any) -> None:
        """Call `action(argument)` at `time`, which is not before `now`."""
        heappush(self._traffic, (time, self._draw(), action, argument))

    def at_end_of_step(self, time: float, action: Callable[[Any], None], argument: Any) -> None:
        """As `at`, for what is usually later than all else."""
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
        """Let time pass until nothing is due any more."""
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
