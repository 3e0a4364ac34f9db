"""`hvd-async bench`: run benchmarks, here or on ranks, and output their results."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TextIO

from hvd_async.benchmarks.options import MODELS, Options, make_options
from hvd_async.benchmarks.ranks import run_as_rank, start_ranks
from hvd_async.benchmarks.report import BenchMachine, Result, print_results, write_results
from hvd_async.cluster.environment import read_environment
from hvd_async.config import load_config
from hvd_async.errors import ConfigError
from hvd_async.system.extras import require

# Benchmarks and their modules in this package, in the order in which they run. Each module has `measure`, `DEFAULTS`
# (`Options`) and `TAKES`, the options that the benchmark uses. `measure(options)` runs in one process, `measure(place,
# options)` on every rank.
_MODULES = {"store": "store", "transport": "transport", "step": "step", "scaling": "scaling", "translation": "translation"}
BENCHMARKS = tuple(_MODULES)
ON_RANKS = ("transport", "step", "scaling")
# Fields of `Options`, each a flag.
FLAGS = tuple(field.name for field in dataclasses.fields(Options))


@dataclasses.dataclass(frozen=True)
class Output:
    """Destinations of results: a JSON file, if any, and a table on `stream`, unless `table` is "none"."""

    json_path: Path | None = None
    table: Literal["auto", "none"] = "auto"
    stream: TextIO = dataclasses.field(default_factory=lambda: sys.stdout)


def bench(name: str | None, given: dict[str, Any], output: Output, environ: Mapping[str, str] = os.environ) -> int:
    """Run benchmark `name` (None: all of them) with the flags `given`, and return the exit status.

    A benchmark that needs ranks starts them itself if it is started by hand; under a launcher this process is one of the
    ranks. A missed target is no failure. Raises `ConfigError` for flags that do not fit, before anything runs.
    """
    if name is not None and name not in BENCHMARKS:
        raise ConfigError(f"bench: got {name!r}, expected one of {', '.join(BENCHMARKS)}, or no name for all")
    names = BENCHMARKS if name is None else (name,)
    chosen = {each: _options(each, given if name else _common(each, given)) for each in names}
    launched = read_environment(environ)
    if launched is not None and (name is None or name not in ON_RANKS):
        raise ConfigError(
            f"bench {name or '(all)'}: got {launched.size} ranks of {launched.launcher.name}, expected a single process; under a"
            f" launcher, name one of {', '.join(ON_RANKS)}"
        )
    if launched is not None and launched.size < 2:
        raise ConfigError(f"bench {name}: got 1 rank, expected at least 2: rank 0 is the store, the others are workers")
    if {"step", "translation"} & set(names):
        require("translation")
    results: list[Result] = []
    for each, options in chosen.items():
        if each in ON_RANKS and launched is None:
            arguments = options.arguments(_module(each).TAKES)
            num_ranks = 1 + (options.workers if "workers" in _module(each).TAKES else 1)
            status, measured = start_ranks(each, arguments, num_ranks, options.threads)
            if status != 0:
                return status
        elif each in ON_RANKS:
            result = run_as_rank(each, _module(each).measure, options)
            measured = [] if result is None else [result]
        else:
            measured = [run_here(each, options)]
        results += measured
        if output.table != "none":
            # A launcher may give its ranks a terminal of its own.
            print_results(measured, output.stream, is_terminal=output.stream.isatty() and launched is None)
    if output.json_path is not None and results:
        write_results(output.json_path, results)
    return 0


def run_here(name: str, options: Options) -> Result:
    """Run a benchmark of one process."""
    machine = BenchMachine.here()
    return Result(name, machine, options, tuple(_module(name).measure(options)))


def _options(name: str, given: dict[str, Any]) -> Options:
    module = _module(name)
    options = make_options(name, module.DEFAULTS, module.TAKES, given)
    if given.get("config") is not None and given.get("model") is not None:
        raise ConfigError(f"--config, --model: got both, expected one of them: {options.config} names a model")
    if options.config is not None:
        load_config(options.config)  # so that a fault is told once, and not by each rank
    if options.model not in MODELS:
        raise ConfigError(f"--model: got {options.model!r}, expected one of {', '.join(MODELS)}")
    return options


def _common(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that benchmark `name` takes, of those given for all benchmarks together."""
    return {flag: value for flag, value in given.items() if flag in _module(name).TAKES}


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"hvd_async.benchmarks.{_MODULES[name]}")
