"""Descriptions of emulation in words. Pure."""

from __future__ import annotations

import pathlib

from hvd_async.config import EmulationConfig
from hvd_async.report.number_format import singular
from hvd_async.system.words import and_listed

_SPREADS = {"log_normal": "log-normal", "gamma": "gamma"}
_SIMULATED_SECONDS = 0.1  # default seconds of a step


def describe_emulation(emulation: EmulationConfig, weight_unit: str, *, is_simulated: bool = False) -> str:
    """Return text such as `steps of 0.25 s, log-normal spread 0.3, worker 0 takes 2 times as long`.

    `weight_unit`: that of the task of the run.
    """
    parts = [_length(emulation, is_simulated)]
    if emulation.seconds_per_weight:
        parts.append(f"{emulation.seconds_per_weight:g} s more for each {singular(weight_unit)}")
    if emulation.seconds_per_micro_batch:
        parts.append(f"{emulation.seconds_per_micro_batch:g} s more for each micro-batch after the first")
    if emulation.spread != "none":
        parts.append(f"{_SPREADS[emulation.spread]} spread {emulation.deviation:g}")
    parts += _slow_workers(emulation)
    if emulation.pause_probability:
        share = 100.0 * emulation.pause_probability
        parts.append(f"a pause of {emulation.pause_seconds:g} s in {share:g} % of the steps")
    return ", ".join(parts)


def _length(emulation: EmulationConfig, is_simulated: bool) -> str:
    if emulation.trace is not None:
        return f"steps as long as in the trace {pathlib.PurePath(emulation.trace).name}"
    if emulation.seconds is not None:
        return f"steps of {emulation.seconds:g} s"
    return f"steps of {_SIMULATED_SECONDS:g} s" if is_simulated else "steps as long as the real ones"


def _slow_workers(emulation: EmulationConfig) -> list[str]:
    """Return the slow workers, those with equal factors together."""
    by_factor: dict[float, list[int]] = {}
    for worker, factor in sorted(emulation.slow_workers.items()):
        if factor != 1.0:
            by_factor.setdefault(factor, []).append(worker)
    return [
        f"worker {workers[0]} takes {factor:g} times as long"
        if len(workers) == 1
        else f"workers {and_listed([*map(str, workers)])} take {factor:g} times as long"
        for factor, workers in by_factor.items()
    ]
