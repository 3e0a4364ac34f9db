"""Throughput of several workers, compared with that of one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hvd_async.benchmarks.options import Options
from hvd_async.benchmarks.scaling import num_steps, scaling_figures, work
from hvd_async.strategies.protocol import Claim, Step


def test_several_workers_are_compared_with_as_many_times_one() -> None:
    figures = scaling_figures(1.0, {1: [9.0, 8.0, 10.0], 2: [18.0, 17.1, 16.0], 3: [30.0, 27.0, 28.0]}, step_seconds=0.1)
    assert [figure.name for figure in figures] == ["1 worker, 1 M", "2 workers, 1 M", "3 workers, 1 M"]
    assert [figure.ratio for figure in figures] == pytest.approx([0.9, 0.95, 28 / 27])
    assert [figure.met for figure in figures] == [None, True, True]


@pytest.mark.parametrize(("seconds", "steps"), [(90.0, 50), (0.1, 3)])
def test_all_measurements_together_take_the_given_seconds(seconds: float, steps: int) -> None:
    assert num_steps(Options(sizes=(1.0,), repeats=3, seconds=seconds, step_seconds=0.1), num_workers=6) == steps


class Counter:
    """A worker that counts its steps."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def claims(self) -> Iterator[Claim]:
        return (Claim(batch) for batch in range(100))

    def step(self, step: Step) -> None:
        self.batches.append(step.batch)


def test_the_first_step_is_made_and_does_not_count() -> None:
    worker = Counter()
    assert work(worker, steps=3, step_seconds=0.0001) > 0  # type: ignore[arg-type]  # it has what is used
    assert worker.batches == [0, 1, 2, 3]
