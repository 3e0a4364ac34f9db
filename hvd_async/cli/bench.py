"""`hvd-async bench`."""

from __future__ import annotations

import argparse
import pathlib

from hvd_async.cli.arguments import (
    check_new,
    device,
    path_argument,
    verb,
)


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_bench(verb(verbs, "bench", "measure the speed of this machine, beside its limits", _bench))


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "benchmark",
        nargs="?",
        metavar="BENCHMARK",
        help="store, transport, step, scaling or translation; default: all of them, one after another",
    )
    parser.add_argument("--sizes", metavar="M,...", help="millions of parameters, such as 1,25,100")
    parser.add_argument("--model", metavar="NAME", help="for step: multi30k (default) or base, of 60 million parameters")
    parser.add_argument(
        "--config",
        type=path_argument,
        metavar="CONFIG",
        help="for step and translation: YAML file of a run, whose task is measured (default: a model of Multi30k's size)",
    )
    parser.add_argument(
        "--joeynmt",
        metavar="PYTHON",
        help="for translation: a Python that has JoeyNMT, whose training steps are measured beside ours",
    )
    parser.add_argument(
        "--micro-batches",
        type=int,
        metavar="M",
        help="for step: measure a step in M micro-batches too, as strategy.micro_batches divides it",
    )
    parser.add_argument("--device", metavar="NAME", help="for store and step: cpu (default), cuda or cuda:INDEX")
    parser.add_argument("--workers", type=int, metavar="N", help="for scaling: the most workers (default 6)")
    parser.add_argument("--step-seconds", type=float, metavar="S", help="for scaling: sleep of each step (default 0.1)")
    parser.add_argument("--repeats", type=int, metavar="N", help="maximum number of repeats of each measurement")
    parser.add_argument("--seconds", type=float, metavar="S", help="time limit of each measurement")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of each rank; see docs/performance.md")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --json")
    parser.add_argument(
        "--table", choices=("auto", "none"), default="auto", help="whether to print the figures (default auto: yes)"
    )


def _bench(arguments: argparse.Namespace) -> int:
    from hvd_async.benchmarks.command import FLAGS, Output, bench

    check_new("--json", arguments.json, overwrite=arguments.overwrite)
    if arguments.device is not None:
        device(arguments.device)
    given = {flag: getattr(arguments, flag) for flag in FLAGS}
    return bench(arguments.benchmark, given, Output(arguments.json, arguments.table))
