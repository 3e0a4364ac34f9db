"""`hvd-async simulate`."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING

from hvd_async.cli.arguments import (
    add_overrides,
    check_folder,
    check_new,
    check_threads,
    device,
    numbers,
    path_argument,
    refuse,
    verb,
)
from hvd_async.errors import ConfigError
from hvd_async.system.extras import require

if TYPE_CHECKING:
    from hvd_async.config import RunConfig


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_simulate(verb(verbs, "simulate", "run a configuration on a simulated cluster, in this process", _simulate))


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        nargs="?",
        type=path_argument,
        metavar="CONFIG",
        help="YAML file; docs/simulation.md explains what is simulated",
    )
    add_overrides(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder's contents, or the output file")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for arithmetic (default 1)")
    parser.add_argument("--device", metavar="NAME", help="device that computes: cpu (default), cuda or cuda:INDEX")
    parser.add_argument("--timing-only", action="store_true", help="predict only the speed; compute no gradients")
    parser.add_argument(
        "--workers", metavar="N,...", help="with --timing-only: sizes of the cluster (default: simulation.workers)"
    )
    parser.add_argument(
        "--arrivals", type=int, metavar="N", help="with --timing-only: arrivals to simulate (default: 50 for each worker)"
    )
    parser.add_argument(
        "--calibrate", type=pathlib.Path, metavar="RUN", help="fit the cluster to a recorded run, and compare the two"
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        metavar="PATH",
        help="with --timing-only: folder for the table and figure; with --calibrate: YAML file for the fitted settings",
    )


def _simulate(arguments: argparse.Namespace) -> int:
    from hvd_async.config import load_config

    if arguments.calibrate is not None:
        return _calibrate(arguments)
    if arguments.timing_only:
        refuse(arguments, ("threads", "device", *(("overwrite",) if arguments.output is None else ())), "--timing-only")
    for flag in ("workers", "arrivals", "output"):
        if getattr(arguments, flag) is not None and not arguments.timing_only:
            raise ConfigError(f"--{flag}: got {getattr(arguments, flag)}, expected --timing-only with it; see --help")
    if arguments.config is None:
        raise ConfigError("simulate: got no configuration, expected CONFIG or --calibrate RUN")
    threads = 1 if arguments.threads is None else arguments.threads
    check_threads(threads)
    name = "cpu" if arguments.device is None else device(arguments.device)
    config = load_config(arguments.config, arguments.overrides)
    if arguments.timing_only:
        return _plan(config, arguments)

    from hvd_async.runs.summary import summary_lines
    from hvd_async.simulation.simulate import SimulateOptions, simulate
    from hvd_async.tasks.registry import make_task

    options = SimulateOptions(arguments.overwrite, threads, sys.stdout.isatty(), name)
    summary = simulate(config, make_task, options)
    print(*summary_lines(summary, config.output), sep="\n")
    return 0


def _plan(config: RunConfig, arguments: argparse.Namespace) -> int:
    from hvd_async.config import keys_without_effect
    from hvd_async.report.emulated_workers import describe_emulation
    from hvd_async.simulation.planning import PLAN_FILES, plan, table_of, write_plan
    from hvd_async.tasks.registry import weight_unit

    workers = numbers("--workers", arguments.workers) if arguments.workers else []
    if arguments.arrivals is not None and arguments.arrivals < 1:
        raise ConfigError(f"--arrivals: got {arguments.arrivals}, expected 1 or more")
    if arguments.output is not None:
        require("report")
        check_folder(arguments.output)
        for name in PLAN_FILES:
            check_new("--output", arguments.output / name, overwrite=arguments.overwrite)
    for line in keys_without_effect(config):
        print(line)
    unit = weight_unit(config)
    assumed = describe_emulation(config.emulation, unit, is_simulated=True)
    if config.emulation.seconds is None and config.emulation.trace is None:
        assumed += " (set emulation.seconds, or see --calibrate)"
    print(f"computed for {assumed}")
    rows = plan(config, workers, arguments.arrivals)
    print(table_of(rows, unit))
    if arguments.output is not None:
        print("written: " + ", ".join(str(path) for path in write_plan(arguments.output, rows, unit, assumed)))
    return 0


def _calibrate(arguments: argparse.Namespace) -> int:
    from hvd_async.simulation.calibration import calibrate

    if arguments.config is not None:
        raise ConfigError(
            f"CONFIG: got {arguments.config} with --calibrate, which reads the run's configuration; remove CONFIG"
        )
    refuse(arguments, ("timing_only", "workers", "arrivals", "threads", "device", "overrides"), "--calibrate")
    if arguments.output is None:
        refuse(arguments, ("overwrite",), "--calibrate without --output")
    check_new("--output", arguments.output, overwrite=arguments.overwrite)
    fitted = calibrate(arguments.calibrate)
    print("\n".join(fitted.lines()))
    if arguments.output is not None:
        fitted.write(arguments.output)
        print(f"written: {arguments.output}")
    return 0
