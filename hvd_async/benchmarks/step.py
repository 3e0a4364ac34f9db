"""A worker's whole step beside its forward and backward pass alone: the cost of the parameter store for a worker."""

from __future__ import annotations

import time

from hvd_async.benchmarks.jobs import run_job
from hvd_async.benchmarks.measurement import BenchFigure, BenchTarget, Effort, duration, take_turns
from hvd_async.benchmarks.models import SIZES, ModelStep
from hvd_async.benchmarks.options import Options, own_cores
from hvd_async.benchmarks.ranks import BenchRank
from hvd_async.config import PushConfig
from hvd_async.strategies.protocol import Step, Worker
from hvd_async.vectors.flat import FlatParameters
from hvd_async.vectors.threads import arithmetic_threads

DEFAULTS = Options(threads=max(1, own_cores() - 1), seconds=90.0)  # the store has a core of its own
TAKES = frozenset({"model", "repeats", "threads", "seconds"})

_OVERLAPPED_STEPS = 4
_TARGETS = {"multi30k": BenchTarget("ratio at least", 0.97), "base": BenchTarget("ratio at least", 0.95)}


def measure(place: BenchRank, options: Options) -> list[BenchFigure]:
    """Return the figures of worker 0, without and with overlap, on rank 1."""
    figures: list[BenchFigure] = []
    with arithmetic_threads(options.threads):
        step = ModelStep(SIZES[options.model])
        flat = FlatParameters(step.model)
        step.model.train()

        for push in (PushConfig(), PushConfig(overlap=True)):

            def loop(worker: Worker, push: PushConfig = push) -> None:
                figures.append(measure_steps(worker, step, flat, options, push))

            run_job(place, step.model, flat, options.threads, loop, push)
    return figures if place.rank == 1 else []


def measure_steps(worker: Worker, step: ModelStep, flat: FlatParameters, options: Options, push: PushConfig) -> BenchFigure:
    """Measure bare and whole steps of `worker` in turns. `flat` holds the parameters of `step`'s model.

    With overlap a turn has several whole steps, of which the mean counts, so that there is a next batch to overlap with.
    """
    claims = worker.claims()
    num_steps = _OVERLAPPED_STEPS if push.overlap else 1

    def bare() -> float:
        begin = time.perf_counter()
        flat.zero_gradient()
        step()
        return time.perf_counter() - begin

    def whole() -> float:
        begin = time.perf_counter()
        for _ in range(num_steps):
            claim = next(claims)
            flat.zero_gradient()
            loss, tokens = step()
            worker.step(Step(claim.batch, tokens, loss, time.perf_counter() - begin))
        return (time.perf_counter() - begin) / num_steps

    effort = Effort(options.repeats, options.seconds / 2)
    seconds = take_turns(lambda: {"bare": bare(), "whole": whole()}, effort)
    name = f"step, {options.model}, {flat.size / 1e6:.1f} M, {step.batch.num_tokens} tokens"
    name += ", overlap" if push.overlap else ""
    limit = ("forward and backward alone", seconds["bare"])
    return duration(name, seconds["whole"], limit, _TARGETS[options.model])
