"""Use of a run's time, from its event log: by each worker, and within a time window."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hvd_async.comparison.runs import Run
from hvd_async.errors import DataError
from hvd_async.runs.event_log import read_events
from hvd_async.runs.folder import RunFolder

Kind = Literal["computing", "pushing", "waiting", "pulling", "updating"]


@dataclass(frozen=True)
class TimedStep:
    """A worker's step, and the push, wait and pull before it. `received_seconds`: time on the run's clock when its
    gradient reached the store, or when all ranks had summed theirs. The other fields are durations."""

    worker: int
    weight: float
    step_seconds: float
    push_seconds: float
    wait_seconds: float
    pull_seconds: float
    received_seconds: float


@dataclass(frozen=True)
class Span:
    """Activity of `worker` (None: the store) from `start` to `end`, in seconds on the run's clock."""

    worker: int | None
    kind: Kind
    start: float
    end: float


@dataclass(frozen=True)
class Shares:
    """Shares of the available time, summed over workers: 0 to 1 each. `other` is the rest, such as reading data,
    evaluating, and the beginning and the end of the run. With overlapped pushes computing and exchange take place at
    once, and `other` may be negative."""

    computing: float
    pushing: float
    waiting: float
    pulling: float
    other: float


@dataclass(frozen=True)
class History:
    """All steps of a run, in the order of their events, and the spans of its updates."""

    num_workers: int
    seconds: float
    steps: tuple[TimedStep, ...]
    updates: tuple[tuple[float, float], ...]
    is_synchronous: bool = False
    is_overlapped: bool = False
    losses: tuple[tuple[int, float], ...] = ()
    """Workers that died, each with the time on the run's clock at which the store went on without it."""

    def steps_of(self, worker: int) -> list[TimedStep]:
        """Return the steps of one worker in its order."""
        own = [step for step in self.steps if step.worker == worker]
        return sorted(own, key=lambda step: step.received_seconds)

    def step_seconds(self) -> dict[int, list[float]]:
        """Return the lengths of each worker's steps, including idling by emulation."""
        found: dict[int, list[float]] = collections.defaultdict(list)
        for step in self.steps:
            found[step.worker].append(step.step_seconds)
        return dict(sorted(found.items()))

    def shares(self, worker: int | None = None) -> Shares:
        """Return how `worker` spent its time; None: all workers together."""
        steps = [step for step in self.steps if worker is None or step.worker == worker]
        present = self.seconds * (self.num_workers if worker is None else 1)
        parts = [
            sum(getattr(step, f"{name}_seconds") for step in steps) / present if present else 0.0
            for name in ("step", "push", "wait", "pull")
        ]
        return Shares(parts[0], parts[1], parts[2], parts[3], other=1.0 - sum(parts))

    def spans(self, start: float, end: float) -> list[Span]:
        """Return the activities of all workers and the store between `start` and `end`, cut to that window.

        Lengths are measured; positions are derived from when gradients were received. Overlapped exchanges lie on top of
        steps.
        """
        spans = [Span(None, "updating", first, last) for first, last in self.updates]
        for worker in range(self.num_workers):
            own = self.steps_of(worker)
            placed = (
                _placed_by_groups(own)
                if self.is_synchronous
                else _placed_from_the_end(own, is_overlapped=self.is_overlapped)
            )
            spans += placed
        cut = [Span(s.worker, s.kind, max(s.start, start), min(s.end, end)) for s in spans]
        return sorted((span for span in cut if span.start < span.end), key=lambda span: span.start)


def _placed_from_the_end(steps: Sequence[TimedStep], *, is_overlapped: bool) -> list[Span]:
    """Place the steps of one `async` worker from the last to the first. Earlier activities are unknown.

    A step ended when its gradient was received, or earlier: before the push, and before the next step by the duration of
    the exchange between them. With overlap, pushes and pulls add no time between steps.
    """
    spans = []
    begin_of_next, following = math.inf, TimedStep(0, 0, 0.0, 0.0, 0.0, 0.0, 0.0)
    for step in reversed(steps):
        exchange: list[tuple[Kind, float]] = [
            ("pushing", following.push_seconds),
            ("waiting", following.wait_seconds),
            ("pulling", following.pull_seconds),
        ]
        between = 0.0 if is_overlapped else sum(seconds for _, seconds in exchange)
        end = min(step.received_seconds - following.push_seconds, begin_of_next - between)
        begin_of_next, following = end - step.step_seconds, step
        spans.append(Span(step.worker, "computing", begin_of_next, end))
        for kind, seconds in exchange:
            spans.append(Span(step.worker, kind, end, end + seconds))
            end += seconds
    return spans


def _placed_by_groups(steps: Sequence[TimedStep]) -> list[Span]:
    """Place the steps of one worker of a synchronous strategy: they all begin when the previous gradients have been
    summed."""
    spans = []
    for number, step in enumerate(steps):
        before = steps[number - 1].received_seconds if number else step.received_seconds - step.step_seconds
        if number + 1 < len(steps):
            end = step.received_seconds - steps[number + 1].wait_seconds
        else:
            end = before + step.step_seconds
        spans.append(Span(step.worker, "computing", end - step.step_seconds, end))
        spans.append(Span(step.worker, "waiting", end, step.received_seconds))
    return spans


def read_history(run: Run) -> History:
    """Read the event log of `run`. Raises `DataError` if it is missing, damaged or from an older version."""
    path = RunFolder(run.folder).events
    steps, updates, losses = [], [], []
    try:
        for event in read_events(path):
            if event["event"] == "arrival":
                steps.append(_step(event))
            elif event["event"] == "update":
                updates.append((event["seconds"] - event["update_seconds"], event["seconds"]))
            elif event["event"] == "lost":
                losses.append((event["worker"], event["seconds"]))
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: an event is damaged, or from an older hvd_async ({type(error).__name__}: {error});"
            " expected the log of a run of this version"
        ) from None
    is_async = run.config.strategy.is_async
    return History(
        max([run.num_workers, *(step.worker + 1 for step in steps)]),  # more may have joined
        run.seconds,
        tuple(steps),
        tuple(updates),
        not is_async,
        is_async and run.config.push.overlap,
        tuple(losses),
    )


def _step(event: Mapping[str, float]) -> TimedStep:
    return TimedStep(
        int(event["worker"]),
        event["weight"],
        event["step_seconds"],
        event["push_seconds"],
        event["wait_seconds"],
        event["pull_seconds"],
        event["received_seconds"],
    )
