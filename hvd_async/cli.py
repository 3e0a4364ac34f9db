"""The verbs of the command line: they read arguments, call, and print. No logic of their own."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import pathlib
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hvd_async.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hvd_async.comparison.collection import Collection
    from hvd_async.config import RunConfig
    from hvd_async.launcher import Host

_EXIT_STATUS = """\
exit status:
  0  done                          4  the machine, launcher or a package does not fit
  1  an unforeseen failure         5  checkpoint missing, damaged, or of another run
  2  configuration or arguments    6  another rank failed or fell silent
  3  data or model files           7  a replayed run gives something else than was recorded
                                   130, 143  stopped by Ctrl-C, SIGTERM; train and launch save
                                   everything first, other verbs are only cut off
"""


def make_parser() -> argparse.ArgumentParser:
    """The whole command line. Each verb sets `run`, a function from the parsed arguments to the exit status."""
    parser = argparse.ArgumentParser(
        prog="hvd-async",
        description="Train with asynchronous, summed gradients through a parameter store over MPI, or with Horovod or DDP.",
        epilog=_EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    _add_data(_verb(verbs, "data", "make a folder of parallel text to train on", _data))
    _add_train(_verb(verbs, "train", "train one configuration, on all ranks that the launcher started", _train))
    _add_launch(_verb(verbs, "launch", "build the mpirun or horovodrun command for a configuration, and run it", _launch))
    _add_translate(_verb(verbs, "translate", "translate text with an exported model, line by line", _translate))
    _add_score(_verb(verbs, "score", "translate a test set and print BLEU and chrF", _score))
    _add_compare(_verb(verbs, "compare", "compute a suite of comparable runs, and report on them", _compare))
    _add_report(_verb(verbs, "report", "compare finished runs: tables, figures and one page", _report))
    _add_simulate(_verb(verbs, "simulate", "run a configuration on a simulated cluster, in this process", _simulate))
    _add_replay(_verb(verbs, "replay", "compute a recorded run again and compare it, to the last bit", _replay))
    _add_bench(_verb(verbs, "bench", "measure how fast this is here, beside the limits of the machine", _bench))
    doctor = _verb(
        verbs, "doctor", "check this machine, MPI and Horovod; under mpirun also how ranks reach each other", _doctor
    )
    doctor.add_argument("--json", action="store_true", help="print findings as JSON")
    return parser


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    purpose: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=_EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override a key, such as strategy.arrivals_per_update=4; may be repeated",
    )


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file; docs/configuration.md explains every key")
    _add_overrides(parser)
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="go on from the latest checkpoint in the output folder")
    begin.add_argument("--overwrite", action="store_true", help="replace the run that the output folder holds")


def _add_data(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(title="corpora", required=True, metavar="CORPUS")
    builtin = kinds.add_parser("builtin", help="generated English-like to German-like sentences; needs nothing else")
    builtin.add_argument("--output", required=True, type=pathlib.Path, metavar="FOLDER", help="folder for the text files")
    builtin.add_argument("--seed", type=int, default=1, help="decides words and sentences (default 1)")
    builtin.add_argument("--train", type=int, default=20000, metavar="N", help="training pairs (default 20000)")
    builtin.add_argument("--validation", type=int, default=500, metavar="N", help="validation pairs (default 500)")
    builtin.add_argument("--test", type=int, default=500, metavar="N", help="test pairs (default 500)")
    builtin.set_defaults(run=_data_builtin)
    multi30k = kinds.add_parser("multi30k", help="Multi30k, English to German: from a folder, or downloaded")
    multi30k.add_argument("--output", required=True, type=pathlib.Path, metavar="FOLDER", help="folder for the text files")
    origin = multi30k.add_mutually_exclusive_group(required=True)
    origin.add_argument(
        "--from", type=pathlib.Path, dest="source", metavar="FOLDER", help="holds train, val, test .en .de[.gz]"
    )
    origin.add_argument("--download", action="store_true", help="fetch it from its public repository, checksums verified")
    multi30k.set_defaults(run=_data_multi30k)


def _data(_: argparse.Namespace) -> int:
    raise AssertionError("argparse asks for a corpus")


def _data_builtin(arguments: argparse.Namespace) -> int:
    from hvd_async.nmt.grammar import write_corpus

    sizes = {"train": arguments.train, "validation": arguments.validation, "test": arguments.test}
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"--{name}: got {size}, expected 1 or more")
    write_corpus(arguments.output, seed=arguments.seed, **sizes)
    print(f"{arguments.output}: {arguments.train} training, {arguments.validation} validation, {arguments.test} test pairs")
    return 0


def _data_multi30k(arguments: argparse.Namespace) -> int:
    from hvd_async.nmt.multi30k import download_multi30k, import_multi30k

    if arguments.download:
        download_multi30k(arguments.output)
    else:
        import_multi30k(arguments.source, arguments.output)
    print(f"{arguments.output}: Multi30k, checksums verified")
    return 0


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--progress",
        choices=("auto", "bar", "lines"),
        default="auto",
        help="auto (default): a bar on a terminal, but lines under a launcher, which may show its ranks a terminal of its own",
    )


def _train(arguments: argparse.Namespace) -> int:
    from hvd_async.config import load_config

    config = load_config(arguments.config, arguments.overrides)

    from hvd_async.nmt import TranslationTask, prepare
    from hvd_async.run import TrainOptions, train
    from hvd_async.topology import read_environment

    is_live = arguments.progress == "bar"
    if arguments.progress == "auto":
        is_live = sys.stdout.isatty() and read_environment(os.environ) is None
    options = TrainOptions(arguments.resume, arguments.overwrite, is_live)
    summary = train(config, lambda config: TranslationTask(config, prepare(config)), options)
    if summary:
        _print_summary(summary, config.output)
    return 0


def _print_summary(summary: dict[str, Any], output: str) -> None:
    last = summary["last"]
    bleu = "" if last["bleu"] is None else f", BLEU {last['bleu']:.2f}"
    print(
        f"{summary['how']}: version {summary['updates']}, {summary['tokens']:,} tokens in {summary['seconds']:.1f} s,"
        f" staleness {summary['mean_staleness']:.2f}, validation loss {last['loss']:.4f}{bleu}; see {output}"
    )
    if summary["refused"]:
        print("refused arrivals: " + ", ".join(f"{reason} {count}" for reason, count in summary["refused"].items()))


def _add_launch(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("-w", "--workers", type=int, metavar="N", help="ranks that train (default 2; 1 for strategy single)")
    parser.add_argument("--dry-run", action="store_true", help="print the command line and do nothing")
    parser.add_argument("--mpi", choices=("openmpi", "mpich"), help="family of the MPI; default: ask mpirun")
    parser.add_argument(
        "--starter",
        choices=("mpirun", "horovodrun-mpi", "horovodrun-gloo"),
        default="mpirun",
        help="what starts the ranks (default mpirun)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--hosts", metavar="HOST:SLOTS,...", help="hosts and ranks on each, the store's first; default: this one"
    )
    where.add_argument("--hostfile", type=pathlib.Path, metavar="FILE", help="the same, a host a line")
    parser.add_argument(
        "--extra", action="append", default=[], metavar="ARG", help="passed to the starter as it is; may repeat"
    )


def _launch(arguments: argparse.Namespace) -> int:
    from hvd_async.config import load_config
    from hvd_async.launcher import LaunchOptions, TrainArguments, detect_mpi, launch_command, run_command

    config = load_config(arguments.config, arguments.overrides)
    bin_folder = pathlib.Path(sys.executable).parent  # the MPI and Horovod of this environment, even if it is not active
    found = {name: str(bin_folder / name) if (bin_folder / name).exists() else name for name in ("mpirun", "horovodrun")}
    is_single = config.strategy.kind == "single"
    options = LaunchOptions(
        mpi=arguments.mpi or ("openmpi" if is_single else detect_mpi(found["mpirun"])),
        starter=arguments.starter,
        mpirun=found["mpirun"],
        horovodrun=found["horovodrun"],
        hosts=_hosts(arguments),
        num_cores=len(os.sched_getaffinity(0)),
        as_root=os.geteuid() == 0,
        extra=tuple(arguments.extra),
    )
    progress = "bar" if sys.stdout.isatty() and not arguments.dry_run else "auto"
    train = TrainArguments(arguments.config, tuple(arguments.overrides), arguments.resume, arguments.overwrite, progress)
    workers = arguments.workers if arguments.workers is not None else 1 if is_single else 2
    command = launch_command(config, train, workers, options)
    paths = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if arguments.starter != "mpirun" and str(bin_folder) not in paths:  # horovodrun looks for mpirun there
        path = os.pathsep.join([str(bin_folder), *paths])
        command = dataclasses.replace(command, environment={**command.environment, "PATH": path})
    print(command.shell_text(), flush=True)
    if arguments.dry_run:
        return 0
    return run_command(command, os.environ, signal.SIGUSR1 if arguments.starter == "mpirun" and not is_single else None)


def _hosts(arguments: argparse.Namespace) -> tuple[Host, ...]:
    from hvd_async.launcher import parse_hosts
    from hvd_async.nmt.text import read_bytes, split_lines

    if arguments.hostfile is not None:
        text = "\n".join(split_lines(read_bytes(arguments.hostfile), arguments.hostfile))
        return parse_hosts(text, str(arguments.hostfile))
    return parse_hosts(arguments.hosts, "--hosts") if arguments.hosts else ()


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL", help="folder such as RUN/models/best")
    parser.add_argument("--beam", type=int, metavar="N", help="beam size; default: the configuration's; 1 is greedy")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda[:INDEX]")


def _add_translate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--input", type=pathlib.Path, metavar="FILE", help="one sentence a line; default: standard input")


def _translate(arguments: argparse.Namespace) -> int:
    from hvd_async.nmt.export import load_model
    from hvd_async.nmt.text import read_bytes, split_lines

    _check_beam(arguments.beam)
    model = load_model(arguments.model, _device(arguments.device))
    if arguments.input is not None:
        lines = split_lines(read_bytes(arguments.input), arguments.input)
    else:
        lines = split_lines(sys.stdin.buffer.read(), pathlib.Path("standard input"))
    for line in model.translate(lines, arguments.beam):
        print(line)
    return 0


def _add_score(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--source", required=True, type=pathlib.Path, metavar="FILE", help="text to translate")
    parser.add_argument(
        "--reference", required=True, type=pathlib.Path, metavar="FILE", help="its translation, line by line"
    )
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="keep the translations there")


def _score(arguments: argparse.Namespace) -> int:
    from hvd_async.atomic import write_file
    from hvd_async.nmt.export import load_model
    from hvd_async.nmt.scoring import score_texts
    from hvd_async.nmt.text import read_bytes, split_lines

    _check_beam(arguments.beam)
    model = load_model(arguments.model, _device(arguments.device))
    sources = split_lines(read_bytes(arguments.source), arguments.source)
    references = split_lines(read_bytes(arguments.reference), arguments.reference)
    if len(sources) != len(references) or not sources:
        raise DataError(
            f"{arguments.source} and {arguments.reference}: got {len(sources)} and {len(references)} lines, expected as many,"
            " at least one"
        )
    translations = model.translate(sources, arguments.beam)
    if arguments.output is not None:
        write_file(arguments.output, "".join(f"{line}\n" for line in translations).encode())
    scores = score_texts(translations, references)
    print(f"BLEU {scores.bleu:.2f}  {scores.bleu_signature}\nchrF {scores.chrf:.2f}  {scores.chrf_signature}")
    return 0


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", type=pathlib.Path, metavar="SUITE", help="YAML file; docs/comparisons.md explains it")
    parser.add_argument(
        "--output", type=pathlib.Path, metavar="FOLDER", help="of the runs and the report (default: runs/NAME of the suite)"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="compute only runs, variants or settings of that name, in which * stands for anything; may repeat",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs computed at a time; they disturb each other")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what is to be computed, and the commands, and do nothing"
    )


def _compare(arguments: argparse.Namespace) -> int:
    from hvd_async.comparison.board import Board
    from hvd_async.comparison.execution import Execution
    from hvd_async.comparison.plan import read_collection
    from hvd_async.comparison.runs import Run
    from hvd_async.comparison.suite import Suite

    if arguments.jobs < 1:
        raise ConfigError(f"--jobs: got {arguments.jobs}, expected 1 or more")
    output = arguments.output if arguments.output is not None else pathlib.Path("runs") / arguments.suite.stem
    _check_folder(output)
    suite = Suite(arguments.suite, output)
    execution = Execution(suite, output, arguments.only)
    todo = execution.todo()
    missing = [spec for spec, found in todo if not isinstance(found, Run)]
    if arguments.dry_run:
        for spec, found in todo:
            print(f"{spec.name}: {'done' if isinstance(found, Run) else found}")
            if not isinstance(found, Run):
                print("    " + shlex.join(["hvd-async", *suite.command(spec)]))
        print(f"{len(missing)} of {len(todo)} runs to be computed" + execution.remark())
        return 0
    print(f"{len(missing)} of {len(todo)} runs to be computed in {output}{execution.remark()}", flush=True)
    failures = execution.run(arguments.jobs, Board(is_live=sys.stdout.isatty()))
    _write_report(read_collection(output), output / "report", None)
    if failures:
        raise DataError("\n".join(["runs that failed:", *failures]))
    return 0


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=pathlib.Path, metavar="RUN", help="folders of runs, or the one folder of a comparison"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("report"), metavar="FOLDER", help="default: report"
    )
    parser.add_argument(
        "--baseline", metavar="NAME", help="what the others are compared with (default: the suite's, or the first run)"
    )
    quality = parser.add_mutually_exclusive_group()
    quality.add_argument("--target-loss", type=float, metavar="LOSS", help="validation loss that runs are timed to")
    quality.add_argument("--target-bleu", type=float, metavar="BLEU", help="validation BLEU that runs are timed to")
    parser.add_argument(
        "--window",
        metavar="START:SECONDS",
        help="of the timeline, in seconds of training (default: some steps in the middle)",
    )


def _report(arguments: argparse.Namespace) -> int:
    from hvd_async.comparison.gathering import gather
    from hvd_async.comparison.target import Target

    target = None
    for measure in ("loss", "bleu"):
        value = getattr(arguments, f"target_{measure}")
        if value is not None:
            if not 0.0 < value < math.inf:
                raise ConfigError(f"--target-{measure}: got {value:g}, expected a number > 0")
            target = Target("loss" if measure == "loss" else "bleu", value)
    window = None if arguments.window is None else _window(arguments.window)
    _check_folder(arguments.output)
    collection = gather(arguments.runs, arguments.baseline, target)
    _write_report(collection, arguments.output, window)
    return 0


def _window(text: str) -> tuple[float, float]:
    try:
        start, seconds = (float(part) for part in text.split(":"))
        if start >= 0.0 and 0.0 < seconds < math.inf:
            return start, seconds
    except ValueError:
        pass
    raise ConfigError(f"--window: got {text!r}, expected START:SECONDS, such as 120:15")


def _write_report(collection: Collection, output: pathlib.Path, window: tuple[float, float] | None) -> None:
    from hvd_async.comparison.results import results
    from hvd_async.report import Window, text_of, write_report

    rows = results(collection)
    paths = write_report(collection, output, None if window is None else Window(*window), rows)
    print(text_of(collection, rows))
    print("written: " + ", ".join(str(path) for path in paths if path.parent == output))


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="YAML file; docs/simulation.md explains what is simulated"
    )
    _add_overrides(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the run that the output folder holds")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for arithmetic (default 1)")
    parser.add_argument("--timing-only", action="store_true", help="compute no gradients: how fast would it be?")
    parser.add_argument(
        "--workers", metavar="N,...", help="with --timing-only: sizes of the cluster (default: simulation.workers)"
    )
    parser.add_argument(
        "--arrivals", type=int, metavar="N", help="with --timing-only: arrivals simulated (default: 50 of each worker)"
    )
    parser.add_argument(
        "--calibrate", type=pathlib.Path, metavar="RUN", help="fit the cluster to a run that was recorded, and compare"
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        metavar="PATH",
        help="with --timing-only: folder for table and figure; with --calibrate: YAML file for what was fitted",
    )


def _simulate(arguments: argparse.Namespace) -> int:
    from hvd_async.config import load_config

    if arguments.calibrate is not None:
        return _calibrate(arguments)
    if arguments.timing_only:
        _refuse(arguments, ("threads", "overwrite"), "--timing-only")
    for flag in ("workers", "arrivals", "output"):
        if getattr(arguments, flag) is not None and not arguments.timing_only:
            raise ConfigError(f"--{flag}: got {getattr(arguments, flag)}, expected --timing-only beside it; see --help")
    if arguments.config is None:
        raise ConfigError("simulate: got no configuration, expected CONFIG or --calibrate RUN")
    threads = 1 if arguments.threads is None else arguments.threads
    if threads < 1:
        raise ConfigError(f"--threads: got {threads}, expected 1 or more")
    config = load_config(arguments.config, arguments.overrides)
    if arguments.timing_only:
        return _plan(config, arguments)

    from hvd_async.nmt import TranslationTask, prepare
    from hvd_async.simulation.simulate import SimulateOptions, simulate

    options = SimulateOptions(arguments.overwrite, threads, sys.stdout.isatty())
    summary = simulate(config, lambda config: TranslationTask(config, prepare(config)), options)
    _print_summary(summary, config.output)
    return 0


def _plan(config: RunConfig, arguments: argparse.Namespace) -> int:
    from hvd_async.simulation.planning import lines_of, plan, write_plan

    workers = _numbers("--workers", arguments.workers) if arguments.workers else []
    if arguments.arrivals is not None and arguments.arrivals < 1:
        raise ConfigError(f"--arrivals: got {arguments.arrivals}, expected 1 or more")
    if arguments.output is not None:
        _check_folder(arguments.output)
    rows = plan(config, workers, arguments.arrivals)
    print("\n".join(lines_of(rows)))
    if arguments.output is not None:
        print("written: " + ", ".join(str(path) for path in write_plan(arguments.output, rows)))
    return 0


def _calibrate(arguments: argparse.Namespace) -> int:
    from hvd_async.simulation.calibration import calibrate

    if arguments.config is not None:
        raise ConfigError(f"CONFIG: got {arguments.config} beside --calibrate, which reads that of the run; leave it out")
    _refuse(arguments, ("timing_only", "workers", "arrivals", "threads", "overwrite", "overrides"), "--calibrate")
    if arguments.output is not None and arguments.output.is_dir():
        raise ConfigError(f"--output: got the folder {arguments.output}, expected a YAML file beside --calibrate")
    fitted = calibrate(arguments.calibrate)
    print("\n".join(fitted.lines()))
    if arguments.output is not None:
        fitted.write(arguments.output)
        print(f"written: {arguments.output}")
    return 0


def _refuse(arguments: argparse.Namespace, names: Sequence[str], beside: str) -> None:
    """Raises `ConfigError` for the first of the arguments that was given, where it would be ignored."""
    for name in names:
        given = getattr(arguments, name)
        if not (given is None or given is False or given == []):
            flag = "--set" if name == "overrides" else "--" + name.replace("_", "-")
            got = "it" if given is True else given[0] if name == "overrides" else given
            raise ConfigError(f"{flag}: got {got} beside {beside}, where it has no effect; leave one of them out")


def _check_folder(output: pathlib.Path) -> None:
    """Raises `ConfigError` for an output folder that cannot be made since a file is there."""
    for path in (output, *output.parents):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--output: got {output}, but {path} is a file; expected a folder")


def _numbers(flag: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) >= 1 for part in parts):
        raise ConfigError(f"{flag}: got {text!r}, expected whole numbers >= 1, such as 4,16,64")
    return [int(part) for part in parts]


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("replayed", type=pathlib.Path, metavar="RUN", help="folder of the run; docs/replay.md")
    parser.add_argument("--until", type=int, metavar="VERSION", help="go no further than this version")
    parser.add_argument(
        "--output", type=pathlib.Path, metavar="FOLDER", help="write the model of the last version made there"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the model that is there")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="compute with so many threads instead of the recorded number"
    )


def _replay(arguments: argparse.Namespace) -> int:
    from hvd_async.nmt import TranslationTask, prepare
    from hvd_async.simulation.replay import ReplayOptions, replay

    if arguments.threads is not None and arguments.threads < 1:
        raise ConfigError(f"--threads: got {arguments.threads}, expected 1 or more")
    options = ReplayOptions(arguments.until, arguments.output, arguments.overwrite, arguments.threads)
    verdict = replay(arguments.replayed, lambda config: TranslationTask(config, prepare(config)), options)
    print(f"equal: {verdict}, all to the last bit")
    if arguments.output is not None:
        print(f"{arguments.output}: the model of version {verdict.versions}")
    return 0


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "benchmark",
        nargs="?",
        metavar="BENCHMARK",
        help="store, transport, step, scaling or nmt; default: all of them, one after another",
    )
    parser.add_argument("--sizes", metavar="M,...", help="millions of parameters, such as 1,25,100")
    parser.add_argument("--model", metavar="NAME", help="for step: multi30k (default) or base, of 60 million parameters")
    parser.add_argument("--config", metavar="CONFIG", help="for nmt: YAML file of a run (default: generated text)")
    parser.add_argument("--device", metavar="NAME", help="for store: cpu (default), cuda or cuda:INDEX")
    parser.add_argument("--workers", type=int, metavar="N", help="for scaling: the most workers (default 6)")
    parser.add_argument("--step-seconds", type=float, metavar="S", help="for scaling: what a step sleeps (default 0.1)")
    parser.add_argument("--repeats", type=int, metavar="N", help="most turns of each measurement")
    parser.add_argument("--seconds", type=float, metavar="S", help="limit for the turns of each measurement")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of each rank; see docs/performance.md")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--table", choices=("auto", "none"), default="auto", help="whether to print them (default auto: yes)"
    )


def _bench(arguments: argparse.Namespace) -> int:
    from hvd_async.benchmarks.command import FLAGS, Output, bench

    if arguments.device is not None:
        _device(arguments.device)
    given = {flag: getattr(arguments, flag) for flag in FLAGS}
    return bench(arguments.benchmark, given, Output(arguments.json, arguments.table))


def _doctor(arguments: argparse.Namespace) -> int:
    from hvd_async.doctor import main

    return main(arguments.json)


def _check_beam(beam: int | None) -> None:
    if beam is not None and beam < 1:
        raise ConfigError(f"--beam: got {beam}, expected 1 or more")


def _device(name: str) -> str:
    import torch

    from hvd_async.errors import SetupError

    try:
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
            return name
    except RuntimeError:
        raise ConfigError(f"--device: got {name!r}, expected cpu or cuda[:INDEX]") from None
    if device.type == "cpu":
        return name
    raise SetupError(f"--device: got {name}, expected cpu or one of {torch.cuda.device_count()} CUDA devices")
