"""A worker's whole step beside the same forward and backward without a store: what the parameter store costs a worker."""

from __future__ import annotations

import time

from hvd_async.benchmarks.jobs import run_job
from hvd_async.benchmarks.limits import arithmetic_threads
from hvd_async.benchmarks.measurement import Effort, Figure, Target, duration, take_turns
from hvd_async.benchmarks.models import SIZES, ModelStep
from hvd_async.benchmarks.options import Options, own_cores
from hvd_async.benchmarks.ranks import Place
from hvd_async.flat import FlatParameters
from hvd_async.strategies.protocol import Step, Worker
from hvd_async.topology import share_cores

DEFAULTS = Options(threads=share_cores(own_cores(), 1, beside_store=True), seconds=90.0)  # as `launch` would have it
TAKES = frozenset({"model", "repeats", "threads", "seconds"})

_TARGETS = {"multi30k": Target("ratio at least", 0.97), "base": Target("ratio at least", 0.95)}


def measure(place: Place, options: Options) -> list[Figure]:
    """One figure, of worker 0."""
    figures: list[Figure] = []
    with arithmetic_threads(options.threads):
        step = ModelStep(SIZES[options.model])
        flat = FlatParameters(step.model)
        step.model.train()

        def loop(worker: Worker) -> None:
            figures.append(measure_steps(worker, step, flat, options))

        run_job(place, step.model, flat, options.threads, loop)
    return figures if place.rank == 1 else []


def measure_steps(worker: Worker, step: ModelStep, flat: FlatParameters, options: Options) -> Figure:
    """Bare and whole steps of `worker` in turns; `flat` holds the parameters of `step`'s model."""
    claims = worker.claims()

    def bare() -> float:
        begin = time.perf_counter()
        flat.zero_gradient()
        step()
        return time.perf_counter() - begin

    def whole() -> float:
        begin = time.perf_counter()
        claim = next(claims)
        flat.zero_gradient()
        loss, tokens = step()
        worker.step(Step(claim.batch, tokens, loss, time.perf_counter() - begin))
        return time.perf_counter() - begin

    effort = Effort(options.repeats, options.seconds)
    seconds = take_turns(lambda: {"bare": bare(), "whole": whole()}, effort)
    name = f"step, {options.model}, {flat.size / 1e6:.1f} M, {step.batch.num_tokens} tokens"
    limit = ("forward and backward alone", seconds["bare"])
    return duration(name, seconds["whole"], limit, _TARGETS[options.model])
