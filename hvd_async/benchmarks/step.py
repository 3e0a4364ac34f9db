"""A worker's whole step beside its forward and backward pass alone: the cost of the parameter store for a worker."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch

from hvd_async.benchmarks.jobs import run_job
from hvd_async.benchmarks.measurement import BenchFigure, BenchTarget, Effort, duration, take_turns
from hvd_async.benchmarks.models import SIZES, BenchStep, ModelStep, TaskStep
from hvd_async.benchmarks.options import Options, own_cores
from hvd_async.benchmarks.ranks import BenchRank
from hvd_async.cluster.topology import Placement
from hvd_async.config import PushConfig, load_config
from hvd_async.strategies.protocol import Step, Worker
from hvd_async.vectors.flat import FlatParameters
from hvd_async.vectors.threads import arithmetic_threads

DEFAULTS = Options(threads=max(1, own_cores() - 1), seconds=90.0)  # the store has a core of its own
TAKES = frozenset({"config", "model", "micro_batches", "repeats", "threads", "seconds", "device"})

_OVERLAPPED_STEPS = 4
_TARGETS = {"multi30k": BenchTarget("ratio at least", 0.97), "base": BenchTarget("ratio at least", 0.95)}


def measure(place: BenchRank, options: Options) -> list[BenchFigure]:
    """Return the figures of worker 0, without and with overlap, on rank 1.

    A worker on a GPU is measured with a store on that GPU, to which it pushes by CUDA IPC, and with one on the CPU, to
    which it pushes through pinned memory.
    """
    figures: list[BenchFigure] = []
    is_worker, is_on_gpu = place.rank > 0, options.device != "cpu"
    if is_on_gpu:
        torch.cuda.set_device(torch.device(options.device).index or 0)
    with arithmetic_threads(options.threads):
        step = make_step(options, options.device if is_worker else "cpu")
        flat = FlatParameters(step.model, options.device if is_worker else "cpu")
        step.model.train()

        for store_device in dict.fromkeys((options.device, "cpu")):
            placement = Placement(
                "async", device=options.device, store_device=store_device, allow_sharing=True, threads=options.threads
            )
            ways = [(PushConfig(), 1), (PushConfig(overlap=True), 1), (PushConfig(), options.micro_batches)]
            for push, number in dict.fromkeys(ways):

                def loop(worker: Worker, push: PushConfig = push, number: int = number, store: str = store_device) -> None:
                    figure = measure_steps(worker, step, flat, options, push, number)
                    if is_on_gpu:
                        name = f"{figure.name}, {torch.cuda.get_device_name()}, store on {store}"
                        figure = dataclasses.replace(figure, name=name)
                    figures.append(figure)

                run_job(place, step.model, flat, placement, loop, push)
    return figures


def make_step(options: Options, device: str) -> BenchStep:
    """Return the step of the task of `options.config`, or else of `options.model`."""
    if options.config is None:
        return ModelStep(SIZES[options.model], device)
    return TaskStep(load_config(options.config), device)


def measure_steps(
    worker: Worker, step: BenchStep, flat: FlatParameters, options: Options, push: PushConfig, micro_batches: int = 1
) -> BenchFigure:
    """Measure bare and whole steps of `worker` in turns, the whole ones in `micro_batches` with pulls between them. `flat` holds
    the parameters of `step`'s model.

    With overlap a turn has several whole steps, of which the mean counts, so that there is a next batch to overlap with.
    """
    claims = worker.claims()
    num_steps = _OVERLAPPED_STEPS if push.overlap else 1
    [batch] = step.batches(1)
    parts = step.batches(micro_batches)

    def bare() -> float:
        begin = time.perf_counter()
        flat.zero_gradient()
        step(batch)
        return time.perf_counter() - begin

    def whole() -> float:
        begin = time.perf_counter()
        for _ in range(num_steps):
            claim = next(claims)
            flat.zero_gradient()
            total_loss, total_weight = 0.0, 0.0
            for number, part in enumerate(parts):
                if number:
                    worker.pull_newer()
                loss, weight = step(part)
                total_loss, total_weight = total_loss + loss, total_weight + weight
            worker.step(Step(claim.batch, total_weight, total_loss, time.perf_counter() - begin))
        return (time.perf_counter() - begin) / num_steps

    effort = Effort(options.repeats, options.seconds / 2)
    seconds = take_turns(lambda: {"bare": bare(), "whole": whole()}, effort)
    subject = options.model if options.config is None else Path(options.config).name
    name = f"step, {subject}, {flat.size / 1e6:.1f} M, {step.size_in_words}"
    name += ", overlap" if push.overlap else ""
    name += f", in {len(parts)} micro-batches" if micro_batches > 1 else ""
    limit = ("forward and backward alone", seconds["bare"])
    has_target = options.config is None and micro_batches == 1
    return duration(name, seconds["whole"], limit, _TARGETS[options.model] if has_target else None)
