"""Steps, pushes, pulls and staleness of a run, from its event log."""

from __future__ import annotations

import itertools
import pathlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hvd_async.errors import DataError
from hvd_async.runs.event_log import read_events

_FEWEST_ARRIVALS = 20


@dataclass(frozen=True)
class Measured:
    """A run in numbers. Lists of pushes, pulls and waits leave out each worker's first arrival, which follows no push.

    Attributes:
        steps: weight and seconds of each worker's steps.
        weights: weights of the batches, in order.
        pushes, pulls: worker and seconds.
        waits, waits_for_updates: seconds of waiting after a push that did not complete an update, and after one that did.
        slowest, sums: longest step of each group of a synchronous strategy, and the shortest wait after the step.
        group_intervals: seconds between one update and the next.
        hosts: hosts of the workers; None for a simulated run.
    """

    parameters: int
    num_workers: int
    num_arrivals: int
    arrivals_per_second: float
    staleness: Counter[int]
    weights: Sequence[float]
    steps: Mapping[int, Sequence[tuple[float, float]]]
    pushes: Sequence[tuple[int, float]]
    pulls: Sequence[tuple[int, float]]
    waits: Sequence[float]
    waits_for_updates: Sequence[float]
    slowest: Sequence[float]
    sums: Sequence[float]
    group_intervals: Sequence[float]
    hosts: Sequence[str] | None
    store_host: str


def read_measured(path: pathlib.Path) -> Measured:
    """Read an event log. Raises `DataError` if it is missing, damaged, or too short."""
    events = list(read_events(path))
    starts = [event for event in events if event["event"] == "start"]
    arrivals = [event for event in events if event["event"] == "arrival"]
    updates = [event for event in events if event["event"] == "update"]
    if not starts or len(arrivals) < _FEWEST_ARRIVALS or len(updates) < 2:
        raise DataError(f"{path}: got {len(arrivals)} arrivals, expected the log of a run with {_FEWEST_ARRIVALS} or more")
    try:
        measured = _measure(starts[-1], arrivals, updates)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: an event is damaged ({type(error).__name__}: {error})") from None
    if measured.arrivals_per_second <= 0.0:
        raise DataError(f"{path}: got {len(updates)} updates, too few for a rate; expected the log of a longer run")
    if not all(any(seconds > 0.0 for _, seconds in steps) for steps in measured.steps.values()):
        raise DataError(f"{path}: got a worker whose steps took no time, expected step_seconds > 0")
    return measured


def _measure(start: dict[str, Any], arrivals: list[dict[str, Any]], updates: list[dict[str, Any]]) -> Measured:
    steps: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for arrival in arrivals:
        steps[arrival["worker"]].append((arrival["weight"], arrival["step_seconds"]))
    exchanges = _Exchanges(arrivals)
    placed = {rank["worker"]: rank["host"] for rank in start.get("ranks", ()) if rank.get("worker") is not None}
    num_workers = max(len(placed), 1 + max(steps))
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for arrival in arrivals:
        if "version" in arrival:
            groups[arrival["version"]].append(arrival)
    return Measured(
        parameters=start["parameters"],
        num_workers=num_workers,
        num_arrivals=len(arrivals),
        arrivals_per_second=_rate(updates, num_workers),
        staleness=Counter(arrival["staleness"] for arrival in arrivals if "staleness" in arrival),
        weights=[arrival["weight"] for arrival in sorted(arrivals, key=lambda one: int(one["batch"]))],
        steps={worker: steps[worker] for worker in sorted(steps)},
        pushes=exchanges.pushes,
        pulls=exchanges.pulls,
        waits=exchanges.waits,
        waits_for_updates=exchanges.waits_for_updates,
        slowest=[max(one["step_seconds"] for one in group) for group in groups.values()],
        sums=[min(one["wait_seconds"] for one in group) for version, group in groups.items() if version > 1],
        group_intervals=[after["seconds"] - before["seconds"] for before, after in itertools.pairwise(updates)],
        hosts=[placed[worker] for worker in sorted(placed)] if placed and not start.get("simulated") else None,
        store_host=next((rank["host"] for rank in start.get("ranks", ())), ""),
    )


class _Exchanges:
    """Times of pushes, waits and pulls, which are logged with the same worker's next arrival."""

    def __init__(self, arrivals: list[dict[str, Any]]) -> None:
        self.pushes: list[tuple[int, float]] = []
        self.pulls: list[tuple[int, float]] = []
        self.waits: list[float] = []
        self.waits_for_updates: list[float] = []
        # The last arrival of an update is the one that completed it.
        last = {arrival["version"]: arrival["batch"] for arrival in arrivals if "version" in arrival}
        completed: dict[int, bool] = {}  # by worker: whether its last push completed an update
        for arrival in sorted(arrivals, key=lambda one: int(one["batch"])):
            worker = arrival["worker"]
            if worker in completed:
                self.pushes.append((worker, arrival["push_seconds"]))
                self.pulls.append((worker, arrival["pull_seconds"] / (1 + len(arrival.get("later_bases", ())))))
                (self.waits_for_updates if completed[worker] else self.waits).append(arrival["wait_seconds"])
            completed[worker] = last.get(arrival.get("version")) == arrival["batch"]


def _rate(updates: list[dict[str, Any]], num_workers: int) -> float:
    """Return arrivals per second, without the beginning and the end, when not all workers work. 0 if no time is left
    between."""
    total = sum(update["arrivals"] for update in updates)
    first, last = min(max(total // 10, num_workers), total // 3), max(total - num_workers, 2 * total // 3)
    applied, began, ended = 0, None, None
    for update in updates:
        applied += update["arrivals"]
        if began is None and applied >= first:
            began = (applied, update["seconds"])
        if applied <= last or ended is None:
            ended = (applied, update["seconds"])
    assert began is not None and ended is not None
    return float((ended[0] - began[0]) / (ended[1] - began[1])) if ended[1] > began[1] else 0.0
