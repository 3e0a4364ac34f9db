"""`hvd-async translate`."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from hvd_async.cli.arguments import check_at_least, check_new, check_other_file, verb
from hvd_async.cli.model_arguments import add_model, add_search, load, report_cut
from hvd_async.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hvd_async.tasks.translation.streaming import Translated
    from hvd_async.tasks.translation.translator import Translation, Translator

_TEMPERATURE, _SEED = 1.0, 1


def add_verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    _add_translate(verb(verbs, "translate", "translate text with a trained model, line by line", _translate))


def _add_translate(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_search(parser)
    parser.add_argument(
        "--input", type=pathlib.Path, metavar="FILE", help="text, one sentence per line; default: standard input"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, metavar="FILE", help="write the translations to this file; default: standard output"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --output")
    parser.add_argument(
        "--n-best",
        type=int,
        metavar="N",
        help="write up to N translations of each line, best first, each as line number, score and text with tabs between them",
    )
    parser.add_argument(
        "--sample",
        action="store_true",
        help="draw translations at random, as probable as the model finds them; --n-best N draws N",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help=f"with --sample: divide log probabilities by T (default {_TEMPERATURE:g}); below 1 draws fewer improbable words",
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="with --sample: draw among the K most probable pieces only")
    parser.add_argument(
        "--seed",
        type=int,
        metavar="S",
        help=f"with --sample: seed (default {_SEED}); a line is drawn by seed and line number",
    )


def _translate(arguments: argparse.Namespace) -> int:
    from hvd_async.tasks.translation.streaming import translate_stream

    _check(arguments)
    translator = load(arguments)
    write_lines = _plain if arguments.n_best is None else _numbered
    work = _work(translator, arguments)
    source = "standard input" if arguments.input is None else str(arguments.input)
    num_lines = num_faults = 0
    with _input(arguments.input) as stream, _output(arguments.output) as write:
        for lines in translate_stream(translator, stream, source, work):
            write("".join(f"{text}\n" for line in lines for text in write_lines(line)))
            faults = [line for line in lines if line.fault]
            for line in faults:
                print(f"hvd-async: {source}: line {line.number}: {line.fault}; left empty", file=sys.stderr)
            num_lines, num_faults = lines[-1].number, num_faults + len(faults)
    report_cut(translator)
    if arguments.output is not None and arguments.output.is_file():  # not a device, which may be this very output
        print(f"{arguments.output}: translations of {num_lines:,} lines")
    if num_faults:
        raise DataError(f"{source}: {num_faults} of {num_lines} lines could not be translated and are empty")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that are out of range or do not go together. Raises `ConfigError`."""
    check_new("--output", arguments.output, overwrite=arguments.overwrite)
    check_other_file("--output", arguments.output, [("--input", arguments.input)])
    check_at_least("--n-best", arguments.n_best, 1)
    check_at_least("--top-k", arguments.top_k, 1)
    if arguments.temperature is not None and not arguments.temperature > 0.0:
        raise ConfigError(
            f"--temperature: got {arguments.temperature:g}, expected a number above 0; --beam 1 takes the most probable pieces"
        )
    if arguments.sample and arguments.beam is not None:
        raise ConfigError(f"--beam {arguments.beam} has no effect with --sample; remove one of them")
    if arguments.sample and arguments.length_penalty is not None and arguments.n_best is None:
        raise ConfigError(
            "--length-penalty has no effect with --sample but in scores; add --n-best, or remove --length-penalty"
        )
    if not arguments.sample:
        for flag in ("--temperature", "--top-k", "--seed"):
            if (given := getattr(arguments, flag[2:].replace("-", "_"))) is not None:
                raise ConfigError(f"{flag} {given} has no effect without --sample; add it, or remove {flag}")


def _work(translator: Translator, arguments: argparse.Namespace) -> Callable[[list[str], int], list[list[Translation]]]:
    """Return what translates lines of the input, given how many lines come before them."""
    from hvd_async.tasks.translation.sampling import Sampling
    from hvd_async.tasks.translation.translator import Translation

    count, beam = arguments.n_best, translator.decoding.beam
    if arguments.sample:
        temperature = _TEMPERATURE if arguments.temperature is None else arguments.temperature
        seed = _SEED if arguments.seed is None else arguments.seed
        return lambda lines, before: translator.sample(
            lines, Sampling(temperature, arguments.top_k, seed, count or 1, first=before)
        )
    if count is None:  # without scores, which greedy search would take time for
        return lambda lines, _: [[Translation(text, 0.0, 0.0)] for text in translator.translate(lines)]
    if count > beam:
        raise ConfigError(f"--n-best: got {count}, expected at most the beam size, {beam}; add --beam {count}")
    return lambda lines, _: translator.n_best(lines, count)


def _plain(line: Translated[list[Translation]]) -> Iterator[str]:
    yield line.result[0].text


def _numbered(line: Translated[list[Translation]]) -> Iterator[str]:
    if line.fault:
        yield f"{line.number}\tnan\t"
        return
    for one in line.result:
        yield f"{line.number}\t{one.score:.6f}\t{one.text}"


@contextlib.contextmanager
def _input(path: pathlib.Path | None) -> Iterator[BinaryIO]:
    from hvd_async.tasks.translation.streaming import open_lines

    if path is not None:
        with open_lines(path) as stream:
            yield stream
    elif sys.stdin is None:
        raise DataError("standard input: closed; expected text, or --input FILE")
    else:
        yield sys.stdin.buffer


@contextlib.contextmanager
def _output(path: pathlib.Path | None) -> Iterator[Callable[[str], object]]:
    """Yield a function that writes text to the file, or to standard output, where it is seen at once."""
    from hvd_async.system.files import new_file

    if path is None:
        yield lambda text: print(text, end="", flush=True)
        return
    with new_file(path) as file:
        yield lambda text: file.write(text.encode())
