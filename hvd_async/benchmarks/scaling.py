"""Throughput of several workers beside that of one, with sleep for computation: the throughput that the store allows."""

from __future__ import annotations

import json
import time

import torch

from hvd_async.benchmarks.jobs import on_cpus, run_job
from hvd_async.benchmarks.measurement import BenchFigure, BenchTarget, Spread, rate
from hvd_async.benchmarks.options import Options, num_elements
from hvd_async.benchmarks.ranks import BenchRank
from hvd_async.strategies.protocol import Step, Worker
from hvd_async.vectors.flat import FlatParameters
from hvd_async.vectors.threads import arithmetic_threads

DEFAULTS = Options(sizes=(1.0,), workers=6, repeats=3, seconds=90.0)
TAKES = frozenset({"sizes", "workers", "repeats", "threads", "seconds", "step_seconds"})

_TARGET = BenchTarget("ratio at least", 0.95)
_FEWEST_STEPS = 3
_UNIT = "steps/s"


def measure(place: BenchRank, options: Options) -> list[BenchFigure]:
    """Return one figure for each size and number of workers, on rank 0. The numbers of workers take turns."""
    figures: list[BenchFigure] = []
    with arithmetic_threads(options.threads):
        for size in options.sizes:
            rates: dict[int, list[float]] = {workers: [] for workers in range(1, place.num_workers + 1)}
            steps = num_steps(options, place.num_workers)
            for _ in range(options.repeats):
                for workers, taken in rates.items():
                    taken.append(_throughput(place, workers, num_elements(size), steps, options))
            figures += scaling_figures(size, rates, options.step_seconds)
    return figures if place.rank == 0 else []


def num_steps(options: Options, num_workers: int) -> int:
    """Return the steps of each worker in a measurement, so that all measurements take about `options.seconds` together."""
    measurements = options.repeats * num_workers * len(options.sizes)
    return max(_FEWEST_STEPS, int(options.seconds / measurements / options.step_seconds))


def _throughput(place: BenchRank, num_workers: int, num: int, steps: int, options: Options) -> float:
    """Return the steps per second of the first `num_workers` workers together, on every rank. Other ranks wait.
    Collective."""
    from hvd_async.transport.messages import first_ranks, wait_quietly  # late: need an initialised MPI

    group = first_ranks(place.group, num_workers + 1)
    mine: list[float] = []
    if group is not None:
        model = _Vector(num)
        flat = FlatParameters(model)

        def loop(worker: Worker) -> None:
            flat.gradient.fill_(1e-4)
            mine.append(work(worker, steps, options.step_seconds))

        inner = BenchRank(group, place.machines[: group.size])
        run_job(inner, model, flat, on_cpus(options.threads), loop)
        group.comm.Free()
    wait_quietly(place.group)
    return sum(sum(json.loads(text)) for text in place.group.allgather(json.dumps(mine)))


def work(worker: Worker, steps: int, step_seconds: float) -> float:
    """Return the steps per second of this worker, without the first step, which touches memory for the first time."""
    begin = 0.0
    for number, claim in enumerate(worker.claims()):
        if number == 1:
            begin = time.perf_counter()
        if number == steps + 1:
            break
        time.sleep(step_seconds)  # the emulated work
        worker.step(Step(claim.batch, weight=1, loss=1.0, seconds=step_seconds))
    return steps / (time.perf_counter() - begin)


def scaling_figures(size: float, rates: dict[int, list[float]], step_seconds: float) -> list[BenchFigure]:
    """Return the figures of one size. `rates`: steps per second of every round, by number of workers."""
    alone = Spread.of(rates[1])
    ceiling = Spread.of([1.0 / step_seconds])
    figures = [rate(f"1 worker, {size:g} M", alone, _UNIT, ("steps without a store", ceiling))]
    for workers, taken in rates.items():
        if workers > 1:
            limit = (f"{workers} times 1 worker", alone.scaled(workers))
            figures.append(rate(f"{workers} workers, {size:g} M", Spread.of(taken), _UNIT, limit, _TARGET))
    return figures


class _Vector(torch.nn.Module):
    """A model that consists of parameters only."""

    def __init__(self, num: int) -> None:
        super().__init__()
        self.vector = torch.nn.Parameter(torch.zeros(num))
